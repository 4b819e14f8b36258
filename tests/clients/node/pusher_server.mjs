// The `pusher` server SDK. Options: its own. `call` answers with what the SDK's promise became.

import Pusher from 'pusher';
import { obey, options } from './reports.mjs';

const pusher = new Pusher(options);

obey({
  async call({ method, args }) {
    try {
      const response = await pusher[method](...args);
      return { status: response.status, body: await response.text() };
    } catch (error) {
      return { status: error.status ?? null, body: error.body ?? String(error) };
    }
  },
  authorize({ socketId, channel, data }) {
    return pusher.authorizeChannel(socketId, channel, data);
  },
});
