-- Ends the session of a connection that ends. A session with filters or a will stays until `confirm_sessions.lua` deletes it: the
-- node first removes the filters, and publishes the will. If the node does not confirm, the session is due.
--
-- KEYS[1]  base of the shard's keys
-- ARGV[1]  node of the connection
-- ARGV[2]  app
-- ARGV[3]  client id
-- ARGV[4]  generation of the connection
-- ARGV[5]  session with the filters that the client watches, or '': those of the stored session
-- ARGV[6]  will that the node publishes, or ''
-- ARGV[7]  milliseconds after which the session is due, unless it is confirmed
--
-- Returns 0 if a later connection has the client id, 1 if the session is deleted, or 2 if the node confirms the end. Also returns
-- the stored deliveries with messages if the connection has not resumed the session, or ''.
local app, client = ARGV[2], ARGV[3]
local name = app .. '/' .. client
if not has_lease(ARGV[1]) then return redis.error_reply('NOLEASE no lease') end
if not is_current(name, ARGV[4]) then return {0, ''} end
allow_when_full()
local key, flow = base .. ':s:' .. name, ''
if redis.call('HEXISTS', key, 'o') == 0 then return {1, ''} end
if ARGV[5] ~= '' then redis.call('SET', base .. ':ss:' .. name, ARGV[5]) end
if redis.call('HEXISTS', key, 'v') == 1 or redis.call('HEXISTS', key, 'y') == 1 then
  flow = redis.call('GET', base .. ':sf:' .. name) or ''
else
  redis.call('DEL', base .. ':sf:' .. name)
end
if ARGV[6] == '' and flow == '' and redis.call('EXISTS', base .. ':ss:' .. name) == 0 then
  forget_session(app, client)
  return {1, ''}
end
local now = wall()
remove_session(app, client)
redis.call('DEL', base .. ':sp:' .. name)
redis.call('HDEL', key, 'q', 'x', unpack(PENDING))
redis.call('HSET', key, 'g', ARGV[4], 'n', '', 'e', '0', 'u', now, 'y', '1')
set_will(name, ARGV[6], 0)
redis.call('ZADD', base .. ':sd', now + ARGV[7], name)
return {2, flow}
