"""What MySQL does and SQLite does not: rewritten in the statement, or registered as functions.

The answers of LifelongAgentBench's tasks were computed by MySQL. Where SQLite would give another answer to the same statement, one of these
rules makes up for it:

  text          Compared without case, as in MySQL's default collation (columns are NOCASE; accents are not folded). Double quotes are text,
                backslashes escape.
  AVG           Of whole numbers: a decimal with four places, halves up. Of others as a double: MySQL keeps as many places as the argument has
                and four more, SQLite does not know how many these are.
  a / b         Never the division of integers; four places, as AVG; NULL where b is 0. DIV is the division of integers.
  ROUND         Halves away from zero, in decimal.
  GROUP BY      Rows come in the order in which the groups first appear in the table, also among equals of an ORDER BY. MySQL collects groups in
                a temporary table in that order; SQLite sorts them. Done where the statement reads one table.
  UPDATE        Of several joined tables, with qualified columns, ORDER BY and LIMIT: first selected, then carried out by row. Numbers that go
                into an INT column are rounded, halves away from zero; text that is no number is an error (`database.py` does both).
  DELETE        Of several joined tables (`DELETE x FROM t AS x JOIN ...`), ORDER BY and LIMIT: the same.
  functions     IF, CONCAT (NULL if one is NULL), LEFT, STDDEV and others that SQLite lacks, see FUNCTIONS and AGGREGATES.
  || and &&     Are OR and AND.

Not done: assignments of an UPDATE that see each other's values from left to right, ONLY_FULL_GROUP_BY, intervals of dates, the clock
(a task's outcome must not depend on when it is played), REGEXP (nothing could stop a pattern that runs for hours).
"""

from __future__ import annotations

import datetime
import decimal
import math
import re
import sqlite3
from collections.abc import Callable
from typing import Any

from mempi_jax.envs.terminal.sql import SqlError, Token, find_word, join, split_commas, tokenize

PLACES = 4  # MySQL's div_precision_increment
MAX_DIVISIONS = 50  # of a statement: rewriting them takes time that no limit of SQLite's counts
READS = ('SELECT', 'WITH')
WRITES = ('INSERT', 'REPLACE', 'UPDATE', 'DELETE')

_CLAUSES = ('WHERE', 'GROUP', 'HAVING', 'WINDOW', 'ORDER', 'LIMIT', 'UNION', 'INTERSECT', 'EXCEPT')
_SET_OPERATORS = ('UNION', 'INTERSECT', 'EXCEPT')
_CAST_TYPES = {'SIGNED': 'INTEGER', 'UNSIGNED': 'INTEGER', 'CHAR': 'TEXT', 'DOUBLE': 'REAL', 'FLOAT': 'REAL'}
# A parenthesis after one of these opens no call: it is an operand of its own.
_BEFORE_OPERANDS = frozenset(
  'SELECT DISTINCT WHERE AND OR NOT HAVING ON BY THEN ELSE WHEN CASE IN BETWEEN LIKE IS SET VALUES LIMIT OFFSET DIV MOD AS FROM'.split()
)


# Statements.


def translate(tokens: list[Token]) -> str:
  """One statement of MySQL (one of READS and WRITES) as SQLite's.

  Raises SqlError where a form is not understood.
  """
  tokens = _rename(tokens)
  tokens = _divide(tokens)
  if tokens[0].is_word(*READS):
    tokens = _order_groups(tokens)
  elif tokens[0].is_word('UPDATE'):
    tokens = _update(tokens)
  elif tokens[0].is_word('DELETE'):
    tokens = _delete(tokens)
  else:
    tokens = _insert(tokens)
  return join(tokens)


def _sql(text: str) -> list[Token]:
  """Tokens of our own SQL."""
  return tokenize(text)


def _rename(tokens: list[Token]) -> list[Token]:
  """Operators, types and function names that SQLite writes otherwise."""
  signs = {'&&': 'AND', '||': 'OR', '<=>': 'IS'}
  renamed = []
  for place, token in enumerate(tokens):
    following = tokens[place + 1] if place + 1 < len(tokens) else None
    if token.kind == 'sign' and token.text in signs:
      token = Token('word', signs[token.text])
    elif token.is_word('MOD') and not (following and following.is_sign('(')):
      token = Token('sign', '%')
    elif token.is_word('LEFT', 'RIGHT') and following and following.is_sign('('):
      token = Token('quoted', f'`{token.text.lower()}`')  # keywords of joins in SQLite
    elif token.is_word(*_CAST_TYPES) and place and tokens[place - 1].is_word('AS') and following and following.is_sign(')', '('):
      token = Token('word', _CAST_TYPES[token.text.upper()])
    renamed.append(token)
  return renamed


def _divide(tokens: list[Token]) -> list[Token]:
  """`a * b / c` becomes mysql_divide(a * b, c), `a DIV b` mysql_div(a, b)."""
  if sum(token.is_sign('/') or token.is_word('DIV') for token in tokens) > MAX_DIVISIONS:
    raise SqlError(f'more than {MAX_DIVISIONS} divisions')
  tokens, place = list(tokens), 0
  while place < len(tokens):
    token = tokens[place]
    if token.is_sign('/') or token.is_word('DIV'):
      start, end = _product_start(tokens, place), _operand_end(tokens, place + 1)
      name = 'mysql_divide' if token.is_sign('/') else 'mysql_div'
      left, right = tokens[start:place], tokens[place + 1 : end]
      call = [Token('word', name), Token('sign', '('), *left, Token('sign', ','), *right, Token('sign', ')')]
      tokens[start:end] = call
      # The right operand may hold divisions of its own: go on where it begins.
      place = start + 2 + len(left)
    place += 1
  return tokens


def _product_start(tokens: list[Token], end: int) -> int:
  """Where the product begins whose last operand ends just before `end`."""
  start = _operand_start(tokens, end)
  while start > 0 and tokens[start - 1].is_sign('*', '%') and start > 1 and not tokens[start - 2].is_sign('(', ','):
    start = _operand_start(tokens, start - 1)
  return start


def _operand_start(tokens: list[Token], end: int) -> int:
  """Where the operand begins that ends just before `end`."""
  place = end - 1
  if place < 0:
    raise SqlError('syntax error: a division without a left side')
  if tokens[place].is_sign(')'):
    place = _matching(tokens, place, -1)
    before = tokens[place - 1] if place else None
    if before is not None and before.is_word('OVER'):
      return _operand_start(tokens, place - 1)
    if before is not None and before.is_name and not (before.kind == 'word' and before.text.upper() in _BEFORE_OPERANDS):
      place -= 1
  elif tokens[place].is_word('END'):
    open_cases = 1
    while open_cases and place > 0:
      place -= 1
      open_cases += tokens[place].is_word('END') - tokens[place].is_word('CASE')
  elif tokens[place].kind == 'sign':
    raise SqlError('syntax error near a division')
  while place > 1 and tokens[place - 1].is_sign('.') and tokens[place - 2].is_name:
    place -= 2
  return place


def _operand_end(tokens: list[Token], place: int) -> int:
  """Just behind the operand that begins at `place`."""
  while place < len(tokens) and tokens[place].is_sign('-', '+', '~'):
    place += 1
  if place >= len(tokens):
    raise SqlError('syntax error: a division without a right side')
  if tokens[place].is_word('CASE'):
    open_cases = 1
    while open_cases and place + 1 < len(tokens):
      place += 1
      open_cases += tokens[place].is_word('CASE') - tokens[place].is_word('END')
    return place + 1
  if tokens[place].is_sign('('):
    return _matching(tokens, place, 1) + 1
  place += 1
  while place + 1 < len(tokens) and tokens[place].is_sign('.'):
    place += 2
  if place < len(tokens) and tokens[place].is_sign('('):
    place = _matching(tokens, place, 1) + 1
    if place + 1 < len(tokens) and tokens[place].is_word('OVER') and tokens[place + 1].is_sign('('):
      place = _matching(tokens, place + 1, 1) + 1
  return place


def _matching(tokens: list[Token], place: int, step: int) -> int:
  """The other parenthesis of the one at `place`; step 1 to look behind it, -1 to look before it."""
  depth = 0
  while 0 <= place < len(tokens):
    depth += step * (tokens[place].is_sign('(') - tokens[place].is_sign(')'))
    if depth == 0:
      return place
    place += step
  raise SqlError('syntax error: parentheses that do not match')


def _order_groups(tokens: list[Token]) -> list[Token]:
  """Groups in the order of their first rows, where the statement reads one table and is no UNION."""
  select = find_word(tokens, 'SELECT')
  group = find_word(tokens, 'GROUP')
  source = find_word(tokens, 'FROM', start=select or 0)
  if select is None or group is None or source is None or find_word(tokens, *_SET_OPERATORS) is not None:
    return tokens
  reference = _single_table(tokens[source + 1 : find_word(tokens, *_CLAUSES, start=source)])
  if reference is None or _defined_by_with(tokens[:select], reference):
    return tokens
  first = _sql(f'MIN({reference[1]}._rowid_)')
  order, limit = find_word(tokens, 'ORDER', start=group), find_word(tokens, 'LIMIT', start=group)
  end = len(tokens) if limit is None else limit
  added = [Token('sign', ','), *first] if order is not None else [*_sql('ORDER BY'), *first]
  return [*tokens[:end], *added, *tokens[end:]]


def _defined_by_with(head: list[Token], reference: tuple[str, str]) -> bool:
  """Whether the table is a common table expression: that has no row ids."""
  return any(token.is_name and token.text.lower() == reference[0].lower() for token in head)


def _single_table(tokens: list[Token]) -> tuple[str, str] | None:
  """(table, alias) of `t`, `t x` or `t AS x`; None for anything else."""
  words = [token for token in tokens if not token.is_word('AS')]
  if not 1 <= len(words) <= 2 or not all(token.is_name for token in words):
    return None
  return words[0].text, words[-1].text


def _first_table(tokens: list[Token]) -> tuple[str, str]:
  """(table, alias) of the first of the joined tables. Raises SqlError if it is no table's name."""
  if not tokens or not tokens[0].is_name:
    raise SqlError("syntax error: expected a table's name")
  place = 1 + (len(tokens) > 1 and tokens[1].is_word('AS'))
  joins = ('JOIN', 'INNER', 'LEFT', 'RIGHT', 'CROSS', 'NATURAL', 'STRAIGHT_JOIN')
  has_alias = place < len(tokens) and tokens[place].is_name and not tokens[place].is_word(*joins, *_CLAUSES, 'SET')
  return tokens[0].text, tokens[place if has_alias else 0].text


def _update(tokens: list[Token]) -> list[Token]:
  """`UPDATE t AS x JOIN ... SET x.c = e WHERE w` becomes an update by row from what a SELECT over the same tables gives."""
  set_place = find_word(tokens, 'SET')
  if set_place is None:
    raise SqlError('syntax error: UPDATE without SET')
  source = [token for token in tokens[1:set_place] if not token.is_word('LOW_PRIORITY', 'IGNORE')]
  table, alias = _first_table(source)
  end = find_word(tokens, 'WHERE', 'ORDER', 'LIMIT', start=set_place)
  rest = [] if end is None else tokens[end:]
  columns, values = [], []
  for part in split_commas(tokens[set_place + 1 : end]):
    sign = next((place for place, token in enumerate(part) if token.is_sign('=')), 0)
    if sign < 1 or not part[sign - 1].is_name or sign + 1 == len(part):
      raise SqlError(f'syntax error: SET expects column = value, found {join(part)}')
    columns.append(part[sign - 1])
    values.append(part[sign + 1 :])
  selected = _sql(f'SELECT {alias}._rowid_ AS _row')
  for number, value in enumerate(values):
    selected += [Token('sign', ','), *value, *_sql(f'AS _value{number}')]
  assigned = _sql(', '.join(f'{column.text} = _new._value{number}' for number, column in enumerate(columns)))
  head = [*_sql(f'UPDATE {table} SET'), *assigned, *_sql('FROM (')]
  return [*head, *selected, Token('word', 'FROM'), *source, *rest, *_sql(f') AS _new WHERE {table}._rowid_ = _new._row')]


def _delete(tokens: list[Token]) -> list[Token]:
  """Every form of DELETE becomes a delete by row of what a SELECT over the same tables gives."""
  keyword = find_word(tokens, 'FROM')
  if keyword is None:
    raise SqlError('syntax error: DELETE without FROM')
  using = find_word(tokens, 'USING', start=keyword)
  named = tokens[1:keyword]
  if using is not None:
    named, keyword = tokens[keyword + 1 : using], using
  end = find_word(tokens, 'WHERE', 'ORDER', 'LIMIT', start=keyword)
  source, rest = tokens[keyword + 1 : end], [] if end is None else tokens[end:]
  table, alias = _first_table(source)
  target = named[0].text if named else alias
  chosen = _sql(f'DELETE FROM {table} WHERE _rowid_ IN ( SELECT {target}._rowid_ FROM')
  return [*chosen, *source, *rest, Token('sign', ')')]


def _insert(tokens: list[Token]) -> list[Token]:
  """INSERT IGNORE is INSERT (no table here has keys), INTO may be left out."""
  rest = [token for token in tokens[1:4] if not token.is_word('IGNORE', 'INTO')] + tokens[4:]
  return [tokens[0], Token('word', 'INTO'), *rest]


# Numbers.


def whole(value: float) -> int:
  """Rounded, halves away from zero. What a decimal of MySQL would be exactly, a double misses by a little: 150 * 1.15 is 172.49999999999997."""
  return int(_decimal(round(value, 9)).to_integral_value(decimal.ROUND_HALF_UP))


def rounded(value: float, places: int) -> float:
  """With so many places, halves away from zero; negative places round before the point."""
  return float(_decimal(round(value, 12)).quantize(decimal.Decimal(1).scaleb(-places), decimal.ROUND_HALF_UP))


def number(value: Any) -> int | float:
  """A value as MySQL's arithmetic takes it: of a text the number it begins with, or 0."""
  if isinstance(value, (int, float)):
    return value
  match = re.match(r'\s*[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?', value if isinstance(value, str) else '')
  return float(match.group()) if match else 0


def _decimal(value: float) -> decimal.Decimal:
  return decimal.Decimal(repr(value))


def _quotient(total: int | float, count: int | float) -> float:
  """total / count as MySQL divides: whole numbers exactly, and then with PLACES places."""
  if isinstance(total, int) and isinstance(count, int):
    exact = decimal.Decimal(total) / decimal.Decimal(count)
    return float(exact.quantize(decimal.Decimal(1).scaleb(-PLACES), decimal.ROUND_HALF_UP))
  return total / count


# Functions; those marked with _of_all give NULL where an argument is NULL.


def _of_all(function: Callable[..., Any]) -> Callable[..., Any]:
  return lambda *values: None if any(value is None for value in values) else function(*values)


def _divided(a: Any, b: Any) -> float | None:
  a, b = number(a), number(b)
  return None if b == 0 else _quotient(a, b)


def _divided_whole(a: Any, b: Any) -> int | None:
  a, b = number(a), number(b)
  return None if b == 0 else math.trunc(_decimal(a) / _decimal(b))


def _modulo(a: Any, b: Any) -> int | float | None:
  a, b = number(a), number(b)
  if b == 0:
    return None
  rest = math.fmod(a, b)
  return int(rest) if isinstance(a, int) and isinstance(b, int) else rest


def _round(value: Any, places: Any = 0) -> int | float:
  value, places = number(value), max(-15, min(15, int(number(places))))
  return value if isinstance(value, int) and places >= 0 else whole(value) if places == 0 else rounded(value, places)


def _truncate(value: Any, places: Any) -> float:
  unit = decimal.Decimal(1).scaleb(-max(-15, min(15, int(number(places)))))
  return float(_decimal(round(number(value), 12)).quantize(unit, decimal.ROUND_DOWN))


def _text(value: Any) -> str:
  return value if isinstance(value, str) else repr(value)


def _concat(*values: Any) -> str:
  return ''.join(map(_text, values))


def _concat_ws(separator: Any, *values: Any) -> str | None:
  return None if separator is None else _text(separator).join(_text(value) for value in values if value is not None)


def _left(text: Any, count: Any) -> str:
  return _text(text)[: max(0, int(number(count)))]


def _right(text: Any, count: Any) -> str:
  count = max(0, int(number(count)))
  return _text(text)[-count:] if count else ''


def _date(value: Any) -> datetime.date | None:
  match = re.match(r'(\d{4})-(\d{1,2})-(\d{1,2})', _text(value))
  try:
    return datetime.date(*map(int, match.groups())) if match else None
  except ValueError:
    return None


def _date_part(name: str) -> Callable[[Any], int | None]:
  def part(value: Any) -> int | None:
    date = _date(value)
    return None if date is None else getattr(date, name)

  return part


def _date_text(value: Any) -> str | None:
  date = _date(value)
  return None if date is None else date.isoformat()


def _days_between(a: Any, b: Any) -> int | None:
  a, b = _date(a), _date(b)
  return None if a is None or b is None else (a - b).days


def _square_root(value: Any) -> float | None:
  return math.sqrt(number(value)) if number(value) >= 0 else None


def _power(a: Any, b: Any) -> float | None:
  try:
    result = float(number(a)) ** float(number(b))
  except (OverflowError, ZeroDivisionError):
    return None
  return result if isinstance(result, float) else None


# name -> (number of arguments, -1: any; function)
FUNCTIONS: dict[str, tuple[int, Callable[..., Any]]] = {
  'mysql_divide': (2, _of_all(_divided)),
  'mysql_div': (2, _of_all(_divided_whole)),
  'mod': (2, _of_all(_modulo)),
  'round': (-1, _of_all(_round)),
  'truncate': (2, _of_all(_truncate)),
  'floor': (1, _of_all(lambda value: math.floor(number(value)))),
  'ceil': (1, _of_all(lambda value: math.ceil(number(value)))),
  'ceiling': (1, _of_all(lambda value: math.ceil(number(value)))),
  'sqrt': (1, _of_all(_square_root)),
  'pow': (2, _of_all(_power)),
  'power': (2, _of_all(_power)),
  'greatest': (-1, _of_all(lambda *values: max(values, key=number) if not all(isinstance(v, str) for v in values) else max(values))),
  'least': (-1, _of_all(lambda *values: min(values, key=number) if not all(isinstance(v, str) for v in values) else min(values))),
  'if': (3, lambda condition, yes, no: yes if condition is not None and number(condition) else no),
  'concat': (-1, _of_all(_concat)),
  'concat_ws': (-1, _concat_ws),
  'left': (2, _of_all(_left)),
  'right': (2, _of_all(_right)),
  'length': (1, _of_all(lambda text: len(_text(text).encode()))),
  'char_length': (1, _of_all(lambda text: len(_text(text)))),
  'ucase': (1, _of_all(lambda text: _text(text).upper())),
  'lcase': (1, _of_all(lambda text: _text(text).lower())),
  'reverse': (1, _of_all(lambda text: _text(text)[::-1])),
  'locate': (2, _of_all(lambda part, text: _text(text).lower().find(_text(part).lower()) + 1)),
  'year': (1, _of_all(_date_part('year'))),
  'month': (1, _of_all(_date_part('month'))),
  'day': (1, _of_all(_date_part('day'))),
  'date': (1, _of_all(_date_text)),
  'datediff': (2, _of_all(_days_between)),
}


# Aggregates; all can be used over a window.


class _Moments:
  """Running count, sum and sum of squares of what is not NULL; whole numbers stay whole, so that they are exact."""

  def __init__(self):
    self.count, self.total, self.squares = 0, 0, 0

  def step(self, value: Any) -> None:
    if value is not None:
      value = number(value)
      self.count, self.total, self.squares = self.count + 1, self.total + value, self.squares + value * value

  def inverse(self, value: Any) -> None:
    if value is not None:
      value = number(value)
      self.count, self.total, self.squares = self.count - 1, self.total - value, self.squares - value * value

  def finalize(self) -> float | None:
    return self.value()

  def variance(self, less: int) -> float | None:
    """The sum of squared deviations over count - less; NULL where that is not positive."""
    if self.count <= less:
      return None
    return max(0.0, (self.squares - self.total * self.total / self.count) / (self.count - less))


class _Average(_Moments):
  def value(self) -> float | None:
    return _quotient(self.total, self.count) if self.count else None


class _Variance(_Moments):
  def value(self) -> float | None:
    return self.variance(0)


class _SampleVariance(_Moments):
  def value(self) -> float | None:
    return self.variance(1)


class _Deviation(_Moments):
  def value(self) -> float | None:
    variance = self.variance(0)
    return None if variance is None else math.sqrt(variance)


class _SampleDeviation(_Moments):
  def value(self) -> float | None:
    variance = self.variance(1)
    return None if variance is None else math.sqrt(variance)


AGGREGATES: dict[str, type[_Moments]] = {
  'avg': _Average,
  'variance': _Variance,
  'var_pop': _Variance,
  'var_samp': _SampleVariance,
  'std': _Deviation,
  'stddev': _Deviation,
  'stddev_pop': _Deviation,
  'stddev_samp': _SampleDeviation,
}

# What SQLite brings itself that a statement may call. Nothing else: no files, no extensions, no clock, no chance.
BUILTIN = frozenset(
  """
  abs coalesce ifnull nullif iif instr lower upper replace trim ltrim rtrim substr substring like
  count sum total min max group_concat
  row_number rank dense_rank percent_rank cume_dist ntile lag lead first_value last_value nth_value
  """.split()
)
ALLOWED = BUILTIN | FUNCTIONS.keys() | AGGREGATES.keys()


def install(connection: sqlite3.Connection) -> None:
  """Registers FUNCTIONS and AGGREGATES."""
  for name, (arguments, function) in FUNCTIONS.items():
    connection.create_function(name, arguments, function, deterministic=True)
  for name, aggregate in AGGREGATES.items():
    connection.create_window_function(name, 1, aggregate)
