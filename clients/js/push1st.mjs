import "./push1st.js";

export const { connect } = globalThis.Push1st;
