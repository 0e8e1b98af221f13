// Test client (Node.js)
const io = require('socket.io-client');

const socket = io('ws://localhost:9000', {
  query: {
    user_id: 'test-user',
    backend_url: 'http://localhost:8000',
    display_name: 'Test User'
  }
});

socket.on('connected', (data) => {
  console.log('Connected:', data);
  
  // Send test event
  socket.emit('collab_event', {
    type: 'position_shared',
    from_user: 'test-user',
    to_users: ['other-user'],
    data: { position_id: '123' }
  });
});

socket.on('event_ack', (ack) => {
  console.log('Event acknowledged:', ack);
});
