// laravel-echo with pusher-js, as a Laravel application uses it. Options: client (pusher-js's own), key, api, user.

import Echo from 'laravel-echo';
import Pusher from 'pusher-js';
import { obey, options, postJson, report } from './reports.mjs';

const { client, key, api, user } = options;

async function authData({ socketId, channelName }) {
  const data = channelName.startsWith('presence-') ? JSON.stringify(user) : '';
  if (channelName.startsWith('private-refused')) return { auth: `${key}:${'0'.repeat(64)}` };
  const auth = await postJson(`${api}/apps/app-test/token/session/`, { session: socketId, channel: channelName, data });
  return data ? { auth: `${key}:${auth}`, channel_data: data } : { auth: `${key}:${auth}` };
}

const echo = new Echo({
  broadcaster: 'pusher',
  client: new Pusher(key, {
    cluster: 'none',
    forceTLS: false,
    enabledTransports: ['ws'],
    channelAuthorization: {
      customHandler: (params, callback) =>
        authData(params).then(
          (data) => callback(null, data),
          (error) => callback(error, null),
        ),
    },
    ...client,
  }),
});

const open = {
  channel: (name) => echo.channel(name),
  private: (name) => echo.private(name),
  presence: (name) => echo.join(name),
};

obey({
  listen({ kind, name, events = [], whispers = [] }) {
    const channel = open[kind](name);
    channel.subscribed(() => report('subscribed', { name }));
    channel.error((error) => report('refused', { name, error }));
    for (const event of events) channel.listen(event, (data) => report('event', { name, event, data }));
    for (const whisper of whispers) channel.listenForWhisper(whisper, (data) => report('whisper', { name, whisper, data }));
    if (kind === 'presence') {
      channel
        .here((users) => report('here', { name, users }))
        .joining((joined) => report('joining', { name, user: joined }))
        .leaving((left) => report('leaving', { name, user: left }));
    }
  },
  whisper({ kind, name, whisper, data }) {
    open[kind](name).whisper(whisper, data);
  },
  leave({ name }) {
    echo.leave(name);
  },
  socketId() {
    return echo.socketId();
  },
});
