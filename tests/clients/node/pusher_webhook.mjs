// Whether the `pusher` server SDK takes a webhook for genuine, and what it reads in it. Options: its own.

import Pusher from 'pusher';
import { obey, options } from './reports.mjs';

const pusher = new Pusher(options);

obey({
  read({ headers, body, older = [] }) {
    const webhook = pusher.webhook({ headers, rawBody: body });
    const valid = webhook.isValid(older);
    return { valid, time: valid && webhook.getTime().getTime(), events: valid && webhook.getEvents() };
  },
});
