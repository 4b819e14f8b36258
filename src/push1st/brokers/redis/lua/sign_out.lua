-- Removes a signed-in user from a node.
--
-- KEYS[1]  base of the shard's keys
-- ARGV[1]  node
-- ARGV[2]  app
-- ARGV[3]  user
-- ARGV[4]  socket id
-- ARGV[5]  id of the edge
-- ARGV[6]  time of the edge
local node, app, user, socket, id, received = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
if not has_lease(node) then return redis.error_reply('NOLEASE no lease') end
allow_when_full()
drop_user(base .. ':n:' .. node, app, user, socket, id, received, recovering())
return 1
