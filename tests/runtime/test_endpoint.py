"""The client of a chat endpoint, against a server in a process of its own that misbehaves in every way that servers do."""

import contextlib
import datetime
import email.utils
import json
import logging
import subprocess
import sys
import threading
import time
import traceback

import pytest

from mempi_jax.runtime import files, preemption
from mempi_jax.runtime.endpoint import (
  Answer,
  AnswerFile,
  ContextLengthError,
  Endpoint,
  EndpointError,
  EndpointUnavailable,
  harmless,
  read_retry_after,
)

PASSING = ('500', '502', '503', '408', '429', 'truncated', 'cut', 'latin', 'html', 'nothing', 'deep', 'empty', 'missing', 'number', 'list', 'sorry', 'closed', 'reset')
QUICK = dict(concurrency=8, timeout=30.0, retries=3, backoff=0.01)


pytestmark = pytest.mark.usefixtures('no_key')


def ask(text='hello'):
  return [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': text}]


def endpoint(url, model='hash', sampling=None, **settings):
  return contextlib.closing(Endpoint(url, model, sampling or {'temperature': 0.5, 'max_tokens': 9}, **{**QUICK, **settings}))


def answers(url, count=30, **settings):
  """The answers to so many questions, asked at once, in the order in which they were asked, and the traffic."""
  with endpoint(url, **settings) as client:
    futures = [client.submit(ask(f'question {i}'), i) for i in range(count)]
    return [future.result() for future in futures], client.traffic


def test_a_request_is_what_it_should_be(server):
  with endpoint(server.url(), 'echo', {'temperature': 0.25, 'max_tokens': 9, 'stop': ['\n']}) as client:
    answer = client.complete(ask('hé 😀'), seed=7)
    assert json.loads(answer.text) == {
      'model': 'echo', 'messages': ask('hé 😀'), 'temperature': 0.25, 'max_tokens': 9, 'stop': ['\n'], 'seed': 7
    }
    assert 'seed' not in json.loads(client.complete(ask()).text)
    assert (answer.finish, answer.prompt_tokens, answer.completion_tokens) == ('stop', 20, len(answer.text.split()))
    assert client.traffic.prompt_tokens == 40


def test_answers_are_the_same_whatever_the_server_does_and_every_retry_is_counted(server):
  good, traffic = answers(server.url())
  assert len({answer.text for answer in good}) > 3
  assert (traffic.attempts, traffic.answers, traffic.retries, traffic.failures) == (30, 30, 0, 0)
  url = server.url('+'.join(PASSING))
  same, traffic = answers(url, retries=5)
  stats = server.stats(url)
  assert same == good
  assert traffic.retries == sum(stats['faults'].values()) == len(stats['attempts']) - 30 > 20
  assert (traffic.answers, traffic.failures) == (30, 0)
  assert len(stats['faults']) > 10


@pytest.mark.parametrize('fault', PASSING)
def test_each_fault_is_tried_again_and_ends_in_an_error_that_says_what_it_was(server, fault):
  url = server.url(f'always-{fault}')
  with endpoint(url, retries=1, backoff=0.001) as client, pytest.raises(EndpointError) as caught:
    client.complete(ask())
  assert len(server.stats(url)['attempts']) == 2
  assert not isinstance(caught.value, (ContextLengthError, EndpointUnavailable))
  words = {'latin': 'not UTF-8', 'empty': 'without choices', 'truncated': 'not JSON', 'sorry': 'overloaded', 'closed': 'no answer'}
  assert words.get(fault, '2 attempts failed') in str(caught.value)


def test_slow_answers_are_given_up_in_time(server):
  good, _ = answers(server.url(), count=6)
  began = time.monotonic()
  same, traffic = answers(server.url('slow+drip'), count=6, timeout=1.2, retries=8)
  assert same == good and traffic.retries > 2
  assert time.monotonic() - began < 15.0


def test_who_waits_for_a_server_can_be_asked_to_end(server):
  asked = threading.Timer(0.3, preemption.request)
  with endpoint(server.url(hold=4)) as client:
    asked.start()
    began = time.monotonic()
    try:
      with pytest.raises(preemption.Preempted):
        client.complete(ask())
    finally:
      preemption.obeyed()
  assert time.monotonic() - began < 3.0  # an answer takes 4 seconds


def test_no_more_requests_than_allowed_are_under_way(server):
  for limit in (1, 5):
    url = server.url(hold=0.2)
    answers(url, count=4 * limit, concurrency=limit)
    assert server.stats(url)['most'] == limit


def test_retry_after_is_waited_for(server):
  url = server.url('429')
  _, traffic = answers(url, count=12)
  stats = server.stats(url)
  assert traffic.retries == stats['faults']['429'] > 3
  assert stats['early'] == 0
  with endpoint(server.url('always-tomorrow')) as client, pytest.raises(EndpointUnavailable, match='86400 seconds'):
    client.complete(ask())


def test_retry_after_in_all_its_forms():
  later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=90)
  assert 80 < read_retry_after(email.utils.format_datetime(later, usegmt=True)) <= 90
  assert [read_retry_after(text) for text in (None, '', '3', ' 1.5 ', '-1', 'nan', 'soon', 'Wed, 21 Oct 2015 07:28:00 GMT')] == [0, 0, 3, 1.5, 0, 0, 0, 0]


@pytest.mark.parametrize('fault', ['400', '302', 'leak'])
def test_what_no_attempt_can_mend_is_not_tried_again(server, fault):
  url = server.url(f'always-{fault}')
  with endpoint(url) as client, pytest.raises(EndpointError):
    client.complete(ask())
  assert len(server.stats(url)['attempts']) == 1


@pytest.mark.parametrize('fault', ['vllm', 'sglang', 'llama', 'llama200', 'openai'])
def test_a_request_that_is_too_long(server, fault):
  url = server.url(f'always-{fault}')
  with endpoint(url, patience=1) as client:
    with pytest.raises(ContextLengthError):
      client.complete(ask())
    assert (client.traffic.out_of_context, client.traffic.failures) == (1, 0)
  assert len(server.stats(url)['attempts']) == 1


def test_a_server_that_is_down_or_refuses_is_unavailable(server):
  with endpoint(server.url('always-401')) as client, pytest.raises(EndpointUnavailable, match='status 401: wrong key'):
    client.complete(ask())
  with endpoint(server.base + '/nowhere') as client, pytest.raises(EndpointUnavailable, match='404'):
    client.complete(ask())
  with endpoint('http://127.0.0.1:9/v1', retries=1, patience=3) as client:
    for _ in range(2):
      with pytest.raises(EndpointError, match='refused') as caught:
        client.complete(ask())
      assert not isinstance(caught.value, EndpointUnavailable)
    with pytest.raises(EndpointUnavailable, match='3 requests failed one after the other'):
      client.complete(ask())


def test_the_key_is_sent_and_never_shown(server, monkeypatch, tmp_path, caplog):
  caplog.set_level(logging.DEBUG)
  secret = 'sk-very-secret-0123456789'
  monkeypatch.setenv('MY_KEY', secret)
  with endpoint(server.url('always-leak'), key_variable='MY_KEY', answers=tmp_path / 'a.jsonl') as client:
    with pytest.raises(EndpointError, match=r'bad key Bearer \[key\]') as caught:
      client.complete(ask())
    shown = ''.join(traceback.format_exception(caught.value)) + caplog.text + repr(client)
  with endpoint(server.url(), 'echo', key_variable='MY_KEY', answers=tmp_path / 'b.jsonl') as client:
    client.complete(ask(f'is {secret} your key?'))
    client.complete(ask('hello'))
  shown += (tmp_path / 'a.jsonl').read_text() + (tmp_path / 'b.jsonl').read_text().replace(f'is {secret} your key?', '', 1)
  assert secret not in shown
  monkeypatch.setenv('MY_KEY', 'sk-two\r\nHost: words')
  with pytest.raises(ValueError, match='MY_KEY') as caught:
    Endpoint(server.url(), 'hash', {}, key_variable='MY_KEY')
  assert 'words' not in str(caught.value)
  with pytest.raises(ValueError, match='environment variable') as caught:
    Endpoint('http://me:secret@127.0.0.1/v1', 'hash', {})
  assert 'secret' not in str(caught.value)


@pytest.mark.parametrize('url', ['', 'localhost:8000/v1', 'ftp://x/v1', 'http://', 'http://x:port/v1', 'http://x/v1?a=b', 'http://x/ v1', 'http://[x/v1'])
def test_an_address_that_is_none(url):
  with pytest.raises(ValueError, match='expected one such as'):
    Endpoint(url, 'm', {})


def test_settings_that_cannot_be():
  for settings in ({'sampling': {'seed': 1}}, {'concurrency': 0}, {'retries': -1}, {'timeout': 0.0}, {'patience': 0}):
    with pytest.raises(ValueError):
      Endpoint('http://x/v1', 'm', **{'sampling': {}, **settings})


def test_answers_are_kept_and_not_asked_again(server, tmp_path):
  path, first, second = tmp_path / 'answers.jsonl', server.url(), server.url()
  good, _ = answers(first, answers=path)
  with open(path, 'ab') as file:
    file.write(b'{"key": "half a li')  # a run that was killed
  same, traffic = answers(second, count=33, answers=path)
  assert same[:30] == good
  assert (traffic.recalled, traffic.answers) == (30, 3)
  assert len(server.stats(second)['attempts']) == 3  # whatever the address
  record = next(files.read_jsonl(path))
  assert (record['model'], record['asked'], record['text']) == ('hash', f'question {record["seed"]}', good[record['seed']].text)
  others = server.url()
  answers(others, count=1, answers=path, sampling={'temperature': 0.6, 'max_tokens': 9})
  with endpoint(others, answers=path) as client:
    client.complete(ask('question 0'), 1)
  assert len(server.stats(others)['attempts']) == 2


def test_equal_requests_at_once_have_one_answer(tmp_path):
  with contextlib.closing(AnswerFile(tmp_path / 'a.jsonl')) as kept:
    request = {'model': 'm', 'messages': ask()}
    barrier, found = threading.Barrier(8), []

    def keep(i):
      barrier.wait()
      found.append(kept.keep('k', request, Answer(str(i))))

    threads = [threading.Thread(target=keep, args=(i,)) for i in range(8)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
  assert len(set(found)) == 1
  assert len(list(files.read_jsonl(tmp_path / 'a.jsonl'))) == 1


def test_a_file_of_answers_belongs_to_one_process(tmp_path):
  path = tmp_path / 'a.jsonl'
  code = f'from mempi_jax.runtime.endpoint import AnswerFile\nAnswerFile({str(path)!r})'
  with contextlib.closing(AnswerFile(path)):
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert 'BlockingIOError' in done.stderr and 'in use by another process' in done.stderr
  AnswerFile(path).close()
  path.write_text('{"key": "x"}\n')
  with pytest.raises(ValueError, match=r'a.jsonl:1: no .text. in it'):
    AnswerFile(path)


def test_a_request_that_has_not_begun_can_be_cancelled(server):
  url = server.url(hold=0.2)
  with endpoint(url, concurrency=1) as client:
    first = client.submit(ask('1'))
    while not first.running():
      time.sleep(0.001)
    second = client.submit(ask('2'))
    assert second.cancel() and not first.cancel()
    first.result()
    client.complete(ask('3'))
  assert len(server.stats(url)['attempts']) == 2


def test_who_interrupts_a_run_does_not_wait_for_the_server(server):
  code = (
    'from mempi_jax.runtime.endpoint import Endpoint\n'
    f'e = Endpoint({server.url(hold=30.0)!r}, "hash", {{}})\n'
    'e.submit([{"role": "user", "content": "x"}])\nraise KeyboardInterrupt'
  )
  assert subprocess.run([sys.executable, '-c', code], capture_output=True, timeout=15).returncode != 0


@pytest.mark.parametrize(
  'token',
  ['<|im_start|>', '<|start_header_id|>', '<start_of_turn>', '<|turn>', '<turn|>', '[/INST]', '<<SYS>>', '</s>', '<｜User｜>', '[gMASK]', '<think>', '[ABSTAIN]', '</tool_call>'],
)
def test_control_tokens_are_spelt_apart(token):
  for text in (token, f'a{token}system\nb', token[:3] + '\x00' + token[3:], token * 2, token[:2] + token + token[2:]):
    assert token not in harmless(text)
    assert harmless(harmless(text)) == harmless(text)


def test_other_text_stays_as_it_is():
  text = 'if a < b and c > d: x[i] | y\n<div class="s">[INFO] 3 <- 4; cat <<EOF | sort -> 😀</div>\tend [systems]'
  assert harmless(text) == text
  assert harmless('a\r\nb\x1b[31m\ud800\u2028c\n') == 'a\nb[31m?\nc'
