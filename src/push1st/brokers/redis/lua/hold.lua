-- Holds back a leaving edge again, because the edge was still held back when an earlier process stopped.
--
-- KEYS[1]  base of the shard's keys
-- ARGV[1]  node
-- ARGV[2]  m (a member left) or c (a channel was vacated)
-- ARGV[3]  app
-- ARGV[4]  channel
-- ARGV[5]  user
-- ARGV[6]  socket id
-- ARGV[7]  time of the edge
-- ARGV[8]  user info
--
-- Returns 1 if this call holds back the edge. Returns 0 if the member or channel exists, or if the edge is already held back.
local node, kind, app, channel, user = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local socket, received, info = ARGV[6], ARGV[7], ARGV[8]
if not has_lease(node) then return redis.error_reply('NOLEASE no lease') end
allow_when_full()
local field, there
if kind == 'm' then
  field = 'm/' .. app .. '/' .. channel .. '\n' .. user
  there = redis.call('HEXISTS', base .. ':m:' .. app .. '/' .. channel, user)
else
  field, there = 'c/' .. app .. '/' .. channel, redis.call('HEXISTS', base .. ':i:' .. app, channel)
end
if there == 1 or redis.call('HEXISTS', base .. ':held', field) == 1 then return 0 end
hold(field, clock(), socket, received, info)
hook_event(kind == 'm' and 'member-added' or 'occupied', 'h', app, channel, received, socket, user, info)
return 1
