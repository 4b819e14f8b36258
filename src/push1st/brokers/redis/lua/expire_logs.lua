-- Drops the expired messages of an app's logs.
--
-- KEYS[1]  base of the shard's keys
-- ARGV[1]  app
-- ARGV[2]  time in milliseconds; messages up to this time have expired
-- ARGV[3]  maximum number of entries that the call drops
--
-- Returns the number of the dropped messages.
local dropped = 0
for _, suffix in ipairs({'', 'a'}) do
  local order = base .. ':lo' .. suffix .. ':' .. ARGV[1]
  for _ = 1, ARGV[3] do
    local oldest = redis.call('ZRANGEBYSCORE', order, '-inf', ARGV[2], 'LIMIT', 0, 1)[1]
    if not oldest then break end
    dropped = dropped + drop_oldest(ARGV[1], oldest, 1)
  end
end
return dropped
