// The other end of tests/support/nodejs.py: commands in, reports out, one JSON value a line.

import { createInterface } from 'node:readline';

export const options = JSON.parse(process.argv[2]);

export function report(on, fields = {}) {
  process.stdout.write(JSON.stringify({ on, ...fields }) + '\n');
}

// Obeys until standard input ends, then exits with 0. What a command returns is reported as its answer.
export function obey(commands) {
  const lines = createInterface({ input: process.stdin });
  lines.on('line', async (line) => {
    const { do: name, ...what } = JSON.parse(line);
    const answer = await commands[name](what);
    if (answer !== undefined) report('answer', { answer });
  });
  lines.on('close', () => process.exit(0));
}

export async function postJson(url, value) {
  const response = await fetch(url, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify(value),
  });
  if (!response.ok) throw new Error(`${url} answered ${response.status}`);
  return response.text();
}
