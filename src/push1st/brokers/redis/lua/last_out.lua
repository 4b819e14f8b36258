-- If no other node is alive, makes a node that stops the consumer of hook events, and ends a recovery (`recovering`).
--
-- KEYS[1]  base of the shard's keys
-- ARGV[1]  node
-- ARGV[2]  milliseconds of the lease
--
-- Returns 1 if no other node is alive, else 0.
local node, lease = ARGV[1], ARGV[2]
for _, other in ipairs(redis.call('SMEMBERS', base .. ':nodes')) do
  if has_lease(other) then return 0 end
end
allow_when_full()
redis.call('SET', base .. ':reader', node, 'PX', lease)
redis.call('DEL', base .. ':recovering')
return 1
