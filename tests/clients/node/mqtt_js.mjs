// mqtt.js over a WebSocket. Options: url, and the options of mqtt.js.

import mqtt from 'mqtt';

import { obey, options, report } from './reports.mjs';

const client = mqtt.connect(options.url, { reconnectPeriod: 0, ...options.options });

client.on('connect', () => report('connect'));
client.on('message', (topic, payload) => report('message', { topic, payload: payload.toString() }));
client.on('error', (error) => report('error', { code: error.code ?? error.message }));
client.on('close', () => report('close'));

obey({
  async subscribe({ topic }) {
    const granted = await client.subscribeAsync(topic);
    return granted.map(({ qos }) => qos);
  },
  publish({ topic, payload }) {
    client.publish(topic, payload);
  },
  end() {
    client.end();
  },
});
