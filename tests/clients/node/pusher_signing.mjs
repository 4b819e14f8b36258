// What the `pusher` server SDK signs without asking a server. Options: its own.

import Pusher from 'pusher';
import { obey, options } from './reports.mjs';

const pusher = new Pusher(options);

obey({
  sign({ method, args }) {
    return pusher[method](...args);
  },
});
