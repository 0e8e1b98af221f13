// usage: node ws_server.js PORT
//
// The same work as socketio_server.js, on Node and the ws package: plain WebSocket, an event is
// encoded once for all its recipients. A peer that scripts/bench measures trio-collab against.
"use strict";

const { createServer } = require("node:http");
const { WebSocketServer } = require("ws");

const http = createServer((request, response) => response.end("ok"));
const server = new WebSocketServer({ server: http, maxPayload: 65536 });
const users = new Map();

function message(event, data) {
  return Buffer.from(JSON.stringify({ event, data }));
}

function tellOthers(except, text) {
  for (const { socket, wantsPresence } of users.values()) {
    if (socket !== except && wantsPresence) socket.send(text, { binary: false });
  }
}

server.on("connection", (socket, request) => {
  const query = new URL(request.url, "ws://localhost").searchParams;
  const user_id = query.get("user_id");
  const display_name = query.get("display_name");
  if (!user_id || !query.get("backend_url")) {
    socket.close(1008, "user_id and backend_url are required");
    return;
  }
  users.set(user_id, { socket, display_name, wantsPresence: query.get("presence") !== "none" });
  const welcome = {
    user_id,
    message: "Connected to collaboration service",
    active_users: users.size,
  };
  socket.send(message("connected", welcome), { binary: false });
  tellOthers(socket, message("user_online", { user_id, display_name }));

  socket.on("message", (text) => {
    const { event, data } = JSON.parse(text);
    if (event === "ping") {
      socket.send(message("pong", { timestamp: Date.now() }), { binary: false });
      return;
    }
    const { type, from_user, to_users } = data;
    const relayed = message("collab_event", { type, from_user, to_users, data: data.data });
    let delivered = 0;
    for (const id of to_users) {
      const user = users.get(id);
      if (user) {
        user.socket.send(relayed, { binary: false });
        delivered += 1;
      }
    }
    const ack = { event_type: type, delivered_to: delivered, total_recipients: to_users.length };
    socket.send(message("event_ack", ack), { binary: false });
  });
  socket.on("error", () => {});
  socket.on("close", () => {
    if (users.get(user_id)?.socket !== socket) return;
    users.delete(user_id);
    tellOthers(socket, message("user_offline", { user_id }));
  });
});

http.listen({ host: "127.0.0.1", port: Number(process.argv[2]), backlog: 4096 });
