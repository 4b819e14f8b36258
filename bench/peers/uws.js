// The yardstick: the least Pusher-shaped publish/subscribe server that uWebSockets.js can be. No apps, rights, limits or counts.
//
//     node uws.js PORT
'use strict';
const uWS = require('uWebSockets.js');
const port = Number(process.argv[2]);
let sockets = 0;

const app = uWS.App();
app.ws('/app/:key', {
  compression: uWS.DISABLED,
  idleTimeout: 120,
  open(ws) {
    const data = JSON.stringify({ socket_id: `${process.pid}.${++sockets}`, activity_timeout: 120 });
    ws.send(JSON.stringify({ event: 'pusher:connection_established', data }));
  },
  message(ws, message) {
    const { event, data } = JSON.parse(Buffer.from(message).toString());
    if (event === 'pusher:subscribe') {
      ws.subscribe(data.channel);
      ws.send(JSON.stringify({ event: 'pusher_internal:subscription_succeeded', channel: data.channel, data: '{}' }));
    } else if (event === 'pusher:unsubscribe') ws.unsubscribe(data.channel);
    else if (event === 'pusher:ping') ws.send('{"event":"pusher:pong","data":"{}"}');
  },
});
app.post('/apps/:id/events', (res) => {
  let body = Buffer.alloc(0);
  res.onAborted(() => {});
  res.onData((chunk, last) => {
    body = Buffer.concat([body, Buffer.from(chunk)]);
    if (!last) return;
    const { name, channels, data } = JSON.parse(body.toString());
    for (const channel of channels) app.publish(channel, JSON.stringify({ event: name, channel, data }), false);
    res.writeHeader('Content-Type', 'application/json').end('{}');
  });
});
app.listen('127.0.0.1', port, (socket) => socket || process.exit(1));
