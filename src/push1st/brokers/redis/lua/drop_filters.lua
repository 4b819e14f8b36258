-- Removes filters of a node that is not registered any more. Nodes of versions without filters evict a node, but not its filters.
--
-- KEYS[1]  base of the shard's keys
-- ARGV[1]  node
-- ARGV[2…] for each filter: app, name
local node = ARGV[1]
if redis.call('SISMEMBER', base .. ':nodes', node) == 1 then return 0 end
allow_when_full()
for i = 2, #ARGV, 2 do
  redis.call('HDEL', base .. ':nf:' .. node, ARGV[i] .. '/' .. ARGV[i + 1])
  set_filter(ARGV[i], node, ARGV[i + 1], '0')
end
return 1
