-- Sets the value of a filter or a group of a node, and publishes the change to all nodes.
--
-- KEYS[1]  base of the shard's keys
-- ARGV[1]  node
-- ARGV[2]  app
-- ARGV[3]  name of the filter or group
-- ARGV[4]  value; 0 removes the filter
local node, app, name, value = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if not has_lease(node) then return redis.error_reply('NOLEASE no lease') end
local mine, field = base .. ':nf:' .. node, app .. '/' .. name
if value == '0' then
  allow_when_full()
  redis.call('HDEL', mine, field)
else
  redis.call('HSET', mine, field, value)
end
set_filter(app, node, name, value)
return 1
