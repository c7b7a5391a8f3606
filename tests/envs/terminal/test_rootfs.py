"""Making a root file system: what is removed, whose the files are, what is said where it cannot be made."""

import json
import os
import stat
import subprocess
import tarfile

import pytest

from mempi_jax.envs.terminal import rootfs as module
from mempi_jax.envs.terminal.rootfs import RootfsError, main, make_rootfs, shift_owners, tidy
from mempi_jax.envs.terminal.sandbox import FIRST_UID

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason='changing owners needs root')


def small_root(root):
  for name in ('etc/apt', 'dev', 'usr/bin', 'usr/share/doc/x', 'var/log', 'var/cache/apt', 'run'):
    (root / name).mkdir(parents=True)
  (root / 'etc/hostname').write_text('builder')
  (root / 'etc/resolv.conf').symlink_to('/run/resolv.conf')
  (root / 'etc/apt/sources.list').write_text('deb somewhere')
  (root / 'usr/bin/su').write_text('su')
  (root / 'usr/bin/su').chmod(0o4755)
  os.link(root / 'usr/bin/su', root / 'usr/bin/su2')
  (root / 'usr/bin/sh').symlink_to('bash')
  (root / 'usr/share/doc/x/readme').write_text('x')
  (root / 'var/log/dpkg.log').write_text('x')


def test_it_tells_nothing_of_the_machine(tmp_path):
  small_root(tmp_path)
  tidy(tmp_path)
  assert (tmp_path / 'etc/hostname').read_text() == 'sandbox\n'
  assert (tmp_path / 'etc/resolv.conf').read_text() == '' and not (tmp_path / 'etc/resolv.conf').is_symlink()
  assert (tmp_path / 'etc/apt/sources.list').read_text() == ''
  assert not list((tmp_path / 'usr/share/doc').iterdir()) and not (tmp_path / 'var/log/dpkg.log').exists()
  assert (tmp_path / 'usr/bin/su').read_text() == 'su'


@needs_root
def test_owners_are_shifted_once(tmp_path):
  small_root(tmp_path)
  os.chown(tmp_path / 'var/log', 0, 4)
  shift_owners(tmp_path, 1000)
  assert {path.lstat().st_uid for path in [tmp_path, *tmp_path.rglob('*')]} == {1000}
  assert (tmp_path / 'var/log').stat().st_gid == 1004
  assert stat.S_IMODE((tmp_path / 'usr/bin/su2').stat().st_mode) == 0o4755
  os.chown(tmp_path / 'var/log', 70_000, 0)
  with pytest.raises(ValueError, match='var/log belongs to 70000:0'):
    shift_owners(tmp_path, 1000)


@needs_root
def test_from_an_archive(tmp_path, capsys):
  small_root(tmp_path / 'image')
  with tarfile.open(tmp_path / 'image.tar', 'w') as tar:
    tar.add(tmp_path / 'image', '.')
  assert main(['--out', str(tmp_path / 'out'), '--archive', str(tmp_path / 'image.tar')]) == 0
  assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['root', 'rootfs.json', 'work']
  assert json.loads((tmp_path / 'out/rootfs.json').read_text())['first_uid'] == FIRST_UID
  assert (tmp_path / 'out/root/usr/bin/su').stat().st_uid == FIRST_UID
  assert main(['--out', str(tmp_path / 'out'), '--archive', str(tmp_path / 'image.tar')]) == 1
  assert 'is not empty' in capsys.readouterr().err


@needs_root
def test_what_fails_leaves_nothing(tmp_path, monkeypatch):
  with pytest.raises(FileNotFoundError):
    make_rootfs(tmp_path / 'out', archive=tmp_path / 'none.tar')
  (tmp_path / 'broken.tar').write_text('no tar')
  with pytest.raises(RootfsError, match='tar ended with status'):
    make_rootfs(tmp_path / 'out', archive=tmp_path / 'broken.tar')
  done = subprocess.CompletedProcess([], 1, stdout='I: one\nE: no such release\n')
  monkeypatch.setattr(module.shutil, 'which', lambda name: f'/usr/sbin/{name}')
  monkeypatch.setattr(module.subprocess, 'run', lambda *arguments, **options: done)
  with pytest.raises(RootfsError, match='status 1: I: one / E: no such release'):
    make_rootfs(tmp_path / 'out')
  assert [path.name for path in tmp_path.iterdir()] == ['broken.tar']


def test_what_is_missing_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr(module.os, 'geteuid', lambda: 0)
  monkeypatch.setattr(module.shutil, 'which', lambda name: None)
  with pytest.raises(RootfsError, match='apt-get install debootstrap'):
    make_rootfs(tmp_path / 'out')
  monkeypatch.setattr(module.os, 'geteuid', lambda: 1000)
  with pytest.raises(RootfsError, match='root'):
    make_rootfs(tmp_path / 'out')
