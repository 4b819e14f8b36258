-- Removes a subscription of a node from a channel, and the member if the member has no other connection on the node.
--
-- KEYS[1]  base of the shard's keys
-- ARGV[1]  node
-- ARGV[2]  app
-- ARGV[3]  channel
-- ARGV[4]  number of the node's remaining subscriptions to the channel
-- ARGV[5]  user without further connections on this node, or ''
-- ARGV[6]  socket id
-- ARGV[7]  id of the edge
-- ARGV[8]  time of the edge
-- ARGV[9]  letters of the edges that hooks receive
--
-- Returns the number of subscriptions on all nodes.
local node, app, channel, n, user = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local socket, id, received, hooked = ARGV[6], ARGV[7], ARGV[8], ARGV[9]
if not has_lease(node) then return redis.error_reply('NOLEASE no lease') end
local mine = base .. ':n:' .. node
allow_when_full()
local deferred = recovering()
if user ~= '' then drop_member(mine, app, channel, user, socket, id, received, hooked, deferred) end
local total, change = count(mine, app, channel, n)
if total <= 0 and change < 0 and hooked ~= '' then vacate(app, channel, socket, id, received, hooked, deferred) end
return total
