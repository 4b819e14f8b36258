// The package mqtt-packet, another codec of MQTT. Bytes are hexadecimal text.

import mqtt from 'mqtt-packet';
import { obey } from './reports.mjs';

function readable(value) {
  if (value instanceof Uint8Array) return { hex: Buffer.from(value).toString('hex') };
  if (Array.isArray(value)) return value.map(readable);
  if (value === null || typeof value !== 'object') return value;
  return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, readable(inner)]));
}

function writable(value) {
  if (Array.isArray(value)) return value.map(writable);
  if (value === null || typeof value !== 'object') return value;
  if ('hex' in value) return Buffer.from(value.hex, 'hex');
  return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, writable(inner)]));
}

obey({
  generate({ packets, version }) {
    const options = { protocolVersion: version };
    return packets.map((packet) => mqtt.generate(writable(packet), options).toString('hex'));
  },

  parse({ bytes, version }) {
    const parser = mqtt.parser({ protocolVersion: version });
    const packets = [];
    parser.on('packet', (packet) => packets.push(readable(packet)));
    parser.on('error', (error) => packets.push({ error: String(error) }));
    parser.parse(Buffer.from(bytes, 'hex'));
    return packets;
  },
});
