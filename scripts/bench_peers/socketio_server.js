// usage: node socketio_server.js PORT
//
// The seed's service on Node and socket.io, without its logging: registry, presence notices,
// routing, acks. A peer that scripts/bench measures trio-collab against.
"use strict";

const { createServer } = require("node:http");
const { Server } = require("socket.io");

const http = createServer((request, response) => response.end("ok"));
const io = new Server(http, { cors: { origin: "*" } });
const users = new Map();

io.on("connection", (socket) => {
  const { user_id, backend_url, display_name, presence } = socket.handshake.query;
  if (!user_id || !backend_url) {
    socket.emit("error", { message: "user_id and backend_url are required" });
    socket.disconnect();
    return;
  }
  users.set(user_id, { socket_id: socket.id, display_name, backend_url, connected_at: new Date().toISOString() });
  if (presence !== "none") socket.join("presence");
  socket.emit("connected", {
    user_id,
    message: "Connected to collaboration service",
    active_users: users.size,
  });
  socket.to("presence").emit("user_online", { user_id, display_name });

  socket.on("collab_event", (event) => {
    const { type, from_user, to_users, data } = event;
    let delivered = 0;
    for (const id of to_users) {
      const user = users.get(id);
      if (user) {
        io.to(user.socket_id).emit("collab_event", { type, from_user, to_users, data });
        delivered += 1;
      }
    }
    socket.emit("event_ack", { event_type: type, delivered_to: delivered, total_recipients: to_users.length });
  });
  socket.on("ping", () => socket.emit("pong", { timestamp: Date.now() }));
  socket.on("disconnect", () => {
    users.delete(user_id);
    io.to("presence").emit("user_offline", { user_id });
  });
});

http.listen({ host: "127.0.0.1", port: Number(process.argv[2]), backlog: 4096 });
