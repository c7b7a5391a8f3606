"""One table in a SQLite database in memory, on which statements from outside are run: what they may do is limited, whatever they say.

A statement is text from a language model. It may read the table and change its rows, and nothing else: SQLite asks `_permit` about everything
that a statement would do while compiling it. Limits on work, on time, on the length of values and on rows end what would go on for too long.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Iterable, Sequence

from mempi_jax.envs.terminal import mysql_rules
from mempi_jax.envs.terminal.sql import SqlError, Token, find_word, join, quote_name, split_statements, tokenize
from mempi_jax.envs.terminal.tasks import EMPTY_TABLE, Column, Row, Table, Value

MAX_STATEMENT = 10_000  # characters
MAX_VALUE = 100_000  # characters of one value
MAX_ROWS = 1_000  # rows of a result
MAX_PAGES = 4_096  # of 4 KiB: what the table may grow to
# Work is counted in SQLite's instructions: that ends a statement at the same point on every machine. Some instructions can be made slow, hence
# processor time as well: of this thread, so that a busy machine changes nothing.
MAX_INSTRUCTIONS = 5_000_000
MAX_SECONDS = 5.0
_INSTRUCTIONS_A_LOOK = 10_000
_FINGERPRINT_LENGTH = 1_024  # MySQL's group_concat_max_len

_PLAIN = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE)
_CHANGES = (sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE)
_SCHEMA_TABLES = ('sqlite_master', 'sqlite_schema', 'sqlite_temp_master', 'sqlite_temp_schema')


class Database:
  """A task's table, to be worked on and then looked at."""

  def __init__(self, table: Table):
    """Raises ValueError where SQLite refuses the table (a name, too many columns); says what."""
    self.table = table
    # One environment is used by one thread at a time, but not always by the same one.
    self._connection = sqlite3.connect(':memory:', isolation_level=None, check_same_thread=False, cached_statements=0)
    self._name = quote_name(table.name)
    self._whole = [column for column in table.columns if column.storage == 'INTEGER']
    self._trusted = True
    self._work, self._deadline = 0, 0.0
    try:
      self._fill()
    except sqlite3.Error as error:
      self.close()
      raise ValueError(f'table {table.name!r}: {error}') from error
    mysql_rules.install(self._connection)
    self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE)
    self._connection.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 200)
    self._connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    self._connection.set_authorizer(self._permit)
    self._connection.set_progress_handler(self._is_too_long, _INSTRUCTIONS_A_LOOK)
    self._trusted = False

  def _fill(self) -> None:
    execute = self._connection.execute
    execute('PRAGMA temp_store = MEMORY')
    execute(f'PRAGMA max_page_count = {MAX_PAGES}')
    execute(f'CREATE TABLE {self._name} ({", ".join(_definition(column) for column in self.table.columns)})')
    marks = ', '.join('?' * len(self.table.columns))
    execute('BEGIN')
    self._connection.executemany(f'INSERT INTO {self._name} VALUES ({marks})', self.table.rows)
    execute('COMMIT')

  def close(self) -> None:
    self._connection.close()

  # Statements from outside.

  def execute(self, sql: str) -> list[Row]:
    """Runs one statement; the rows that it gives, none for a change.

    Raises:
      SqlError: it is not one statement, or it cannot or may not be run; the table is as it was.
    """
    if len(sql) > MAX_STATEMENT:
      raise SqlError(f'the statement has {len(sql)} characters; at most {MAX_STATEMENT} are read')
    statements = split_statements(tokenize(sql))
    if len(statements) != 1:
      raise SqlError(f'one SQL statement at a time, found {len(statements) or "none"}; nothing was run')
    tokens = statements[0]
    if tokens[0].is_word('WITH') and find_word(tokens, 'INSERT', 'UPDATE', 'DELETE') is not None:
      return self._write(join(tokens))
    if tokens[0].is_word(*mysql_rules.READS):
      return self._read(mysql_rules.translate(tokens))
    if tokens[0].is_word(*mysql_rules.WRITES):
      return self._write(mysql_rules.translate(tokens))
    if tokens[0].is_word('SHOW', 'DESCRIBE', 'DESC'):
      return self._describe(tokens)
    raise SqlError(f'{tokens[0].text[:30]} is not allowed; a statement begins with SELECT, INSERT, UPDATE, DELETE, SHOW or DESCRIBE')

  def _read(self, sql: str) -> list[Row]:
    rows = self._run(sql)
    if len(rows) > MAX_ROWS:
      raise SqlError(f'more than {MAX_ROWS} rows; add LIMIT')
    return rows

  def _write(self, sql: str) -> list[Row]:
    """A change is carried out whole or not at all, and leaves numbers of the right kind in the table."""
    self._own('BEGIN')
    try:
      self._run(sql)
      self._round_whole_columns()
    except BaseException:
      if self._connection.in_transaction:  # a change that was stopped is undone already
        self._own('ROLLBACK')
      raise
    self._own('COMMIT')
    return []

  def _describe(self, tokens: list[Token]) -> list[Row]:
    if tokens[0].is_word('SHOW') and len(tokens) == 2 and tokens[1].is_word('TABLES'):
      return [(self.table.name,)]
    wanted = tokens[-1].text.strip('`').lower()
    if wanted != self.table.name.lower():
      raise SqlError(f'expected SHOW TABLES or DESCRIBE {self.table.name}')
    return [(column.name, column.type.lower(), 'YES', '', None, '') for column in self.table.columns]

  def _run(self, sql: str) -> list[Row]:
    self._work, self._deadline = 0, time.thread_time() + MAX_SECONDS
    try:
      return self._connection.execute(sql).fetchmany(MAX_ROWS + 1)
    except sqlite3.OperationalError as error:
      if str(error) == 'interrupted':
        raise SqlError('the statement took too long and was stopped') from None
      raise SqlError(str(error)) from None
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
      raise SqlError(str(error)) from None

  # What SQLite asks while a statement is compiled and run.

  def _permit(self, action: int, first: str | None, second: str | None, database: str | None, source: str | None) -> int:
    if self._trusted or action in _PLAIN:
      return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_READ and (first or '').lower() not in _SCHEMA_TABLES:
      return sqlite3.SQLITE_OK
    if action in _CHANGES and (first or '').lower() == self.table.name.lower():
      return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_FUNCTION and (second or '').lower() in mysql_rules.ALLOWED:
      return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY

  def _is_too_long(self) -> bool:
    self._work += _INSTRUCTIONS_A_LOOK
    return not self._trusted and (self._work > MAX_INSTRUCTIONS or time.thread_time() > self._deadline)

  # Statements of our own.

  def _own(self, sql: str) -> list[Row]:
    self._trusted = True
    try:
      return self._connection.execute(sql).fetchall()
    finally:
      self._trusted = False

  def _round_whole_columns(self) -> None:
    """MySQL's strict mode: INT columns hold whole numbers. Raises SqlError for a text in one."""
    for column in self._whole:
      name = quote_name(column.name)
      for row_id, value in self._own(f"SELECT _rowid_, {name} FROM {self._name} WHERE typeof({name}) NOT IN ('integer', 'null')"):
        if not isinstance(value, float):
          raise SqlError(f'incorrect integer value: {str(value)[:60]!r} for column {column.name!r}')
        if not abs(value) < 2**63:
          raise SqlError(f'out of range value for column {column.name!r}')
        self._own(f'UPDATE {self._name} SET {name} = {mysql_rules.whole(value)} WHERE _rowid_ = {row_id}')

  def rows(self) -> list[Row]:
    """The table as it is now, in its own order."""
    return self._own(f'SELECT * FROM {self._name} ORDER BY _rowid_')

  def fingerprint(self) -> str:
    """See `fingerprint`."""
    return fingerprint(self.rows())


def _definition(column: Column) -> str:
  """Text is compared without case, as MySQL does."""
  return f'{quote_name(column.name)} {column.storage}{" COLLATE NOCASE" if column.storage == "TEXT" else ""}'


def fingerprint(rows: Iterable[Sequence[Value]]) -> str:
  """What LifelongAgentBench knows a table's content by, whatever the order of its rows.

  The md5 of the sorted row hashes with commas between them, of which MySQL joins no more than 1,024 characters; a row's hash is the first five
  digits of the md5 of its values with commas between them, NULL left out. EMPTY_TABLE for no rows.
  """
  hashes = sorted(_md5(','.join(str(value) for value in row if value is not None))[:5] for row in rows)
  return _md5(','.join(hashes)[:_FINGERPRINT_LENGTH]) if hashes else EMPTY_TABLE


def _md5(text: str) -> str:
  return hashlib.md5(text.encode('utf-8', 'surrogatepass'), usedforsecurity=False).hexdigest()
