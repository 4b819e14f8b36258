-- Makes sessions absent whose connections have ended while the broker was unreachable.
--
-- KEYS[1]   base of the shard's keys
-- ARGV[1]   node of the connections
-- ARGV[2]   milliseconds after which the wills are due at the earliest
-- ARGV[3]   `bounds_of`
-- ARGV[4…]  the sessions: app, slash, client id
local now, bounds = wall(), bounds_of(ARGV[3])
allow_when_full()
for i = 4, #ARGV do
  local app, client = string.match(ARGV[i], '^([^/]*)/(.*)$')
  if redis.call('HGET', base .. ':s:' .. ARGV[i], 'n') == ARGV[1] then
    leave_session(app, client, now, tonumber(ARGV[2]), bounds)
  else
    redis.call('SREM', base .. ':sn:' .. ARGV[1], ARGV[i])
  end
end
return 1
