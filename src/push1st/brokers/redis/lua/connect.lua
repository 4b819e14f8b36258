-- Sets the number of a node's connections to an app.
--
-- KEYS[1]  base of the shard's keys
-- ARGV[1]  node
-- ARGV[2]  app
-- ARGV[3]  number of the node's connections to the app
-- ARGV[4]  maximum number of connections to the app on all nodes; 0 stands for no limit
--
-- Returns 0 if the new connections would exceed the limit, else 1.
local node, app, n, most = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
if not has_lease(node) then return redis.error_reply('NOLEASE no lease') end
local mine, field = base .. ':n:' .. node, 'q/' .. app
local old = tonumber(redis.call('HGET', mine, field) or '0')
local total = tonumber(redis.call('HGET', base .. ':q', app) or '0')
if n > old and most > 0 and total + n - old > most then return 0 end
if n < old then allow_when_full() end
if n > 0 then redis.call('HSET', mine, field, n) else redis.call('HDEL', mine, field) end
if redis.call('HINCRBY', base .. ':q', app, n - old) <= 0 then redis.call('HDEL', base .. ':q', app) end
return 1
