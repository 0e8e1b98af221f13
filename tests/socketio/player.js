'use strict';
// Plays clients of socket.io-client: takes acts, one JSON object a line, from stdin, and says on
// stdout what each client hears, in the same way. tests/socketio_players.py has the other end.
const readline = require('node:readline');
const fs = require('node:fs');
const { io } = require('socket.io-client');

const sockets = new Map();

function say(client, event, ...args) {
  process.stdout.write(JSON.stringify({ client, event, args }) + '\n');
}

const acts = {
  connect({ client, url, namespace, query, auth, transports, headers, ca, comes_back, events }) {
    const socket = io(url + namespace, {
      forceNew: true,
      reconnection: comes_back,
      reconnectionDelay: 50,
      reconnectionDelayMax: 200,
      ...(query && { query }),
      ...(auth && { auth }),
      ...(transports && { transports }),
      ...(headers && { extraHeaders: headers }),
      ...(ca && { ca: fs.readFileSync(ca) }),
    });
    sockets.set(client, socket);
    for (const name of events) socket.on(name, (data) => say(client, name, data));
    socket.on('connect', () => say(client, '<connect>', socket.io.engine.transport.name));
    socket.on('disconnect', (reason) => say(client, '<disconnect>', reason));
    socket.on('connect_error', ({ message, data }) => say(client, '<connect_error>', { message, data }));
  },
  emit({ client, event, data }) {
    sockets.get(client).emit(event, data);
  },
  emit_binary({ client, event, data }) {
    sockets.get(client).emit(event, { ...data, data: { blob: Buffer.from([1, 2, 3]), more: Buffer.from('x') } });
  },
  call({ client, event, data }) {
    sockets.get(client).timeout(10000).emit(event, data, (error, reply) => {
      say(client, '<reply>', error ? String(error) : reply);
    });
  },
  state({ client }) {
    const socket = sockets.get(client);
    const comesBack = socket.active && !socket.connected && socket.io._reconnecting;
    say(client, '<state>', {
      connected: socket.connected,
      comes_back: comesBack,
      transport: socket.connected ? socket.io.engine.transport.name : null,
    });
  },
  disconnect({ client }) {
    sockets.get(client).disconnect();
  },
};

readline.createInterface({ input: process.stdin })
  .on('line', (line) => { const { act, ...rest } = JSON.parse(line); acts[act](rest); })
  .on('close', () => process.exit(0));
