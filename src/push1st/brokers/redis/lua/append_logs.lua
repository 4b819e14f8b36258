-- Sends copies of a published batch to nodes, and appends the messages to logs, because the nodes or a log were not known when the
-- batch was published. Both are one step, so that the end of a log covers all copies sent before.
--
-- KEYS[1]   base of the shard's keys
-- ARGV[1]   app
-- ARGV[2]   channel
-- ARGV[3]   generation of the server's state
-- ARGV[4]   copy of the batch for the inboxes of the nodes
-- ARGV[5]   id of the message if `append.lua` may have refused it, else ''; then the script changes nothing
-- ARGV[6]   name of the idempotency key, or ''
-- ARGV[7]   number of nodes, N
-- ARGV[8…]  N nodes; then the arguments of `append_to_logs`
--
-- Returns the number of logs with the messages, and the number of messages that these logs have dropped.
local id, key, logs = ARGV[5], ARGV[6], 8 + ARGV[7]
if id ~= '' then
  if redis.call('EXISTS', base .. ':no:' .. id) == 1 then return {0, 0} end
  if key ~= '' and string.match(redis.call('GET', base .. ':o:' .. key) or '', '[^ ]*$') ~= id then return {0, 0} end
end
local found, dropped = append_to_logs(ARGV[1], ARGV[2], ARGV[3], '', logs)
for i = 8, logs - 1 do redis.call(PUBLISH, base .. ':t:/' .. ARGV[i], ARGV[4]) end
return {found, dropped}
