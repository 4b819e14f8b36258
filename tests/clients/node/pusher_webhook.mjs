// Whether the `pusher` server SDK takes a webhook for genuine, and what it reads in it. Options: its own.

import Pusher from 'pusher';
import { obey, options } from './reports.mjs';

const pusher = new Pusher(options);

obey({
  read({ headers, body }) {
    const webhook = pusher.webhook({ headers, rawBody: body });
    return { valid: webhook.isValid(), time: webhook.isValid() && webhook.getTime().getTime(), events: webhook.isValid() && webhook.getEvents() };
  },
});
