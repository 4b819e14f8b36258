// EventSource of Node.js itself (library: '') or of the npm package `eventsource`. Options: url, library, types (the types of
// blocks that are reported besides `message`).

import { obey, options, report } from './reports.mjs';

const { EventSource } = options.library ? await import(options.library) : globalThis;
const source = new EventSource(options.url);

source.onopen = () => report('open');
source.onerror = () => report('error', { closed: source.readyState === EventSource.CLOSED });
for (const type of ['message', ...(options.types ?? [])]) {
  source.addEventListener(type, ({ data, lastEventId: id }) => report(type, { data, id }));
}

obey({
  close() {
    source.close();
  },
});
