// A client of Push1st that misses no event without a notification. README.md describes its options.
//
// This file defines `Push1st` in classic scripts, modules, workers and Node.js, and has no dependency.
//
// The scheme of the URL selects the transport: `wss:` a WebSocket, `https:` a stream of server-sent events. Streams are read with
// `fetch`, because EventSource hides the status, sends the token only in the URL, and may forget its last id.
//
// The client stores the position `EPOCH:OFFSET` of the last event of each channel, and sends these positions whenever it connects.
// For each channel, the server answers with `resumed`, and sends the events after the position.

globalThis.Push1st = {
  connect(url, options) {
    const { token, credentials, onEvent, onGap, onResumed, onState, onError = console.error } = options;
    const target = new URL(url, globalThis.location?.href);
    const Socket = /^http/.test(target.protocol) ? null : (options.WebSocket ?? WebSocket);
    const channels = [...new Set(options.channels)];
    const positions = Object.assign(Object.create(null), options.positions);
    const connection = { close, positions, state: "waiting" };
    let attempt = new AbortController();
    let failures = 0;
    let retry = 1000;
    let timer;

    const wait = (ms, next) => {
      clearTimeout(timer);
      timer = setTimeout(next, ms);
    };
    // `async`, so that an exception of a callback becomes an unhandled rejection, and does not end the connection.
    const call = async (callback, ...values) => callback?.(...values);
    const enter = (state, reason) => {
      if (connection.state === state) return;
      connection.state = state;
      call(onState, state, reason);
    };
    const fail = (code, message, channel) => call(onError, { code, message, channel });
    // HTTP statuses, and close codes of WebSockets. 408, 429 and 4004 (over quota) are temporary. 1008 rejects a client that
    // connects; later, 1008 ends a connection whose token has expired, or which is too slow.
    const isFinal = (code) =>
      /^(4(?!08|29)\d\d|40(?!04)\d\d|4[3-9]\d\d)$/.test(code) || (code === 1008 && connection.state === "connecting");

    const open = async () => {
      attempt.abort();
      attempt = new AbortController();
      const { signal } = attempt;
      let socket;

      const end = (reason, code) => {
        if (signal.aborted) return;
        if (isFinal(code)) {
          close();
          return fail(code, reason);
        }
        attempt.abort();
        wait(retry * 2 ** Math.min(failures++, 4) * (0.5 + Math.random()), open);
        enter("waiting", reason);
      };
      const lost = () => end("no answer");
      const alive = () =>
        signal.aborted ||
        wait(30000, () => {
          wait(10000, lost);
          socket?.send('{"event":"ping"}');
        });

      const resumed = (channel, { recovered, reason, replayed = 0, position }) => {
        failures = 0;
        enter("connected");
        if (!recovered) delete positions[channel];
        // While replayed events are to come, only these events move the position, because the connection may end before the last.
        if (position && !replayed) positions[channel] = position;
        recovered ? call(onResumed, channel, replayed, position) : call(onGap, channel, reason, position);
      };
      const receive = (text) => {
        if (signal.aborted) return;
        const frame = JSON.parse(text);
        const { event, channel, data, "#msg-id": id = frame.pos, "#msg-pos": position = frame.pos } = frame;
        if (position) {
          const [epoch, offset] = position.split(":");
          const [current, last] = (positions[channel] ?? "").split(":");
          if (epoch === current && +offset <= +last) return;
          // Before the callback, because the callback may open another connection with these positions.
          positions[channel] = position;
        } else if (id === undefined) {
          // Clients may publish events with these names, but only the server's replies have no id and no `pos`, not even null.
          if (event === "resumed") return resumed(channel, data);
          if (event === "error") return isFinal(data.code) ? channel && fail(data.code, data.message, channel) : end(data.message);
          if (event === "pong") return;
        }
        call(onEvent, { ...frame, position });
      };

      wait(30000, lost);
      enter("connecting");
      try {
        const secret = typeof token === "function" ? await token() : token;
        if (signal.aborted) return;
        const address = new URL(target);
        address.pathname += `/${channels.map(encodeURIComponent).join("/")}`;
        address.search += `&since=${channels.map((channel) => positions[channel] ?? "-")}`;
        if (!Socket) {
          const headers = secret ? { Authorization: `Bearer ${secret}` } : {};
          const response = await fetch(address, { signal, credentials, headers, cache: "no-store" });
          if (!response.ok) return end(await response.text(), response.status);
          const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
          for (let rest = ""; ; ) {
            const { done, value } = await reader.read();
            if (done) return end("stream ended");
            alive();
            const lines = (rest + value).split("\n");
            rest = lines.pop();
            for (const line of lines) {
              // Data that is not an object is a list of positions.
              if (line.startsWith("data: {")) receive(line.slice(6));
              if (line.startsWith("retry: ")) retry = +line.slice(7);
            }
          }
        }
        if (secret) address.search += `&token=${encodeURIComponent(secret)}`;
        socket = new Socket(address);
        signal.onabort = () => socket.close();
        // The WebSocket of Node.js 20 fires no `close` if the handshake fails (nodejs/undici#3546).
        socket.onerror = lost;
        socket.onclose = ({ code, reason }) => end(`${code} ${reason}`, code);
        socket.onmessage = ({ data }) => {
          alive();
          receive(data);
        };
      } catch (error) {
        end(error.message);
      }
    };

    function close() {
      attempt.abort();
      clearTimeout(timer);
      globalThis.removeEventListener?.("online", open);
      enter("closed");
    }
    globalThis.addEventListener?.("online", open);
    wait(0, open);
    return connection;
  },
};
