-- Defers a leave that the server had not received before it lost its state.
--
-- KEYS[1]   base of the shard's keys
-- ARGV[1]   node
-- ARGV[2]   m (a member left), c (a channel was vacated) or u (a user signed out)
-- ARGV[3]   app
-- ARGV[4]   channel
-- ARGV[5]   user
-- ARGV[6]   socket id
-- ARGV[7]   id of the edge
-- ARGV[8]   time of the edge
-- ARGV[9]   letters of the edges that hooks receive
-- ARGV[10]  user info
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
