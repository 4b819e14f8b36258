// push1st.js in a worker of pages/push1st.html: reports all calls to the page.
importScripts('/push1st.js');

onmessage = ({ data: [url, options, names] }) => {
  for (const name of names) options[name] = (...values) => postMessage([name, ...values]);
  Push1st.connect(url, options);
};
