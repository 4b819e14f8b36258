-- Defers a leave that happened while the node had no connection, before the server lost its state.
--
-- KEYS[1]   base of the shard's keys
-- ARGV[1]   node
-- ARGV[2]   what is left: m (member), c (channel) or u (user)
-- ARGV[3]   app
-- ARGV[4]   channel
-- ARGV[5]   user
-- ARGV[6]   socket
-- ARGV[7]   id
-- ARGV[8]   received
-- ARGV[9]   edges that hooks want
-- ARGV[10]  info
local node, kind, app, channel, user = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local socket, id, received, hooked, info = ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10]
if not has_lease(node) then return redis.error_reply('NOLEASE no lease') end
allow_when_full()
local field, there
if kind == 'm' then
  field = 'm/' .. app .. '/' .. channel .. '\n' .. user
  there = redis.call('HEXISTS', base .. ':m:' .. app .. '/' .. channel, user)
elseif kind == 'c' then
  field, there = 'c/' .. app .. '/' .. channel, redis.call('HEXISTS', base .. ':i:' .. app, channel)
else
  field, there = 'u/' .. app .. '/' .. user, redis.call('HEXISTS', base .. ':u:' .. app, user)
end
if there == 0 then defer(field, clock(), socket, id, received, hooked, info) end
return 1
