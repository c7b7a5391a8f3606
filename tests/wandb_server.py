"""A server that speaks as much of Weights & Biases' protocol as the client needs to begin, resume and finish a run."""

import contextlib
import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class WandbServer:
  """Keeps all that it is sent. A context manager; its address is `url`."""

  def __init__(self):
    self.history = {}  # id of a run -> its rows, as JSON texts
    self.configs = {}  # id of a run -> its config, as JSON text
    self.bodies = []  # of all requests
    handler = type('Handler', (_Handler,), {'server_state': self})
    self._server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    self._server.handle_error = lambda *request: None  # clients that are killed break their connections
    self.url = f'http://127.0.0.1:{self._server.server_address[1]}'

  def __enter__(self):
    threading.Thread(target=self._server.serve_forever, daemon=True).start()
    return self

  def __exit__(self, *error):
    self._server.shutdown()
    self._server.server_close()

  def rows(self, key):
    """Step and metrics of a run's rows."""
    rows = [json.loads(text) for text in self.history[key]]
    return [(row['_step'], {name: value for name, value in row.items() if not name.startswith('_')}) for row in rows]

  def stream(self, key, files):
    """Lines of a run's files, each part with the number of the line it begins at."""
    part = files.get('wandb-history.jsonl')
    if part:
      history = self.history[key]
      history[part['offset'] :] = part['content']

  def answer(self, query, variables):
    """To a GraphQL query."""
    project = {'id': 'P', 'name': 'mempi_jax', 'entity': {'id': 'E', 'name': 'someone'}}
    if 'upsertBucket' in query:
      key = variables['name']
      new = key not in self.history
      self.history.setdefault(key, [])
      self.configs[key] = variables.get('config') or self.configs.get(key, '{}')
      bucket = {'id': f'B{key}', 'name': key, 'displayName': key, 'config': self.configs[key], 'sweepName': None, 'project': project}
      return {'upsertBucket': {'bucket': bucket | {'historyLineCount': len(self.history[key])}, 'inserted': new}}
    if 'query RunResumeStatus' in query:
      key, bucket = variables['name'], None
      if key in self.history:
        counts = {'historyLineCount': len(self.history[key]), 'logLineCount': 0, 'eventsLineCount': 0}
        tails = {'historyTail': json.dumps(self.history[key][-1:]), 'eventsTail': '[]', 'summaryMetrics': '{}'}
        names = {'id': f'B{key}', 'name': key, 'displayName': key, 'tags': [], 'wandbConfig': '{"t": {}}'}
        bucket = names | counts | tails | {'config': self.configs[key]}
      return {'model': project | {'bucket': bucket}}
    if 'createRunFiles' in query:
      files = [{'name': name, 'uploadUrl': f'{self.url}/upload/{name}'} for name in variables['files']]
      return {'createRunFiles': {'runID': variables['run'], 'uploadHeaders': [], 'files': files}}
    if 'query Viewer' in query:
      return {'viewer': {'id': 'U', 'entity': 'someone', 'username': 'someone', 'flags': '{}', 'teams': {'edges': []}}}
    return {}


class _Handler(BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'

  def log_message(self, *arguments):
    pass

  def do_GET(self):
    self._reply({})

  def do_PUT(self):
    self._body()
    self._reply({})

  def do_POST(self):
    body = self._body()
    state, reply = self.server_state, {}
    with contextlib.suppress(ValueError, UnicodeDecodeError):
      content = json.loads(body)
      if self.path == '/graphql':
        reply = {'data': state.answer(content['query'], content.get('variables', {}))}
      elif self.path.endswith('/file_stream'):
        state.stream(self.path.split('/')[-2], content.get('files') or {})
    self._reply(reply)

  def _body(self):
    if self.headers.get('Transfer-Encoding') == 'chunked':
      body = b''
      while length := int(self.rfile.readline(), 16):
        body += self.rfile.read(length)
        self.rfile.readline()
      self.rfile.readline()
    else:
      body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
    body = gzip.decompress(body) if self.headers.get('Content-Encoding') == 'gzip' else body
    self.server_state.bodies.append(body)
    return body

  def _reply(self, value):
    data = json.dumps(value).encode()
    self.send_response(200)
    self.send_header('Content-Type', 'application/json')
    self.send_header('Content-Length', str(len(data)))
    self.end_headers()
    self.wfile.write(data)
