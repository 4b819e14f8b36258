-- Adds a signed-in user to a node.
--
-- KEYS[1]  base of the shard's keys
-- ARGV[1]  node
-- ARGV[2]  app
-- ARGV[3]  user
-- ARGV[4]  socket id
-- ARGV[5]  id of the edge
-- ARGV[6]  time of the edge
--
-- Returns 1 if the user was not signed in on this node before, else 0.
local node, app, user, socket, id, received = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
if not has_lease(node) then return redis.error_reply('NOLEASE no lease') end
if redis.call('HSETNX', base .. ':n:' .. node, 'u/' .. app .. '/' .. user, '') == 0 then return 0 end
if redis.call('HINCRBY', base .. ':u:' .. app, user, 1) == 1 then
  redis.call('HDEL', base .. ':gone', 'u/' .. app .. '/' .. user)
  edge('on', app, '#watch-' .. user, user, socket, id, received, '')
end
return 1
