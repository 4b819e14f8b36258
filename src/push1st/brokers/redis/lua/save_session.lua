-- Stores the session of a connection that ends.
--
-- KEYS[1]   base of the shard's keys
-- ARGV[1]   node of the connection
-- ARGV[2]   app
-- ARGV[3]   client id
-- ARGV[4]   generation of the connection
-- ARGV[5]   owner of the client id: kind, slash, name; '' stands for the owner and address of the stored session
-- ARGV[6]   address of an anonymous client, or ''
-- ARGV[7]   milliseconds for which the session outlives the connection; 0: only the will waits
-- ARGV[8]   session without messages
-- ARGV[9]   will, or ''
-- ARGV[10]  milliseconds of the will's delay
-- ARGV[11]  bytes that count for the session without messages
-- ARGV[12]  deliveries with messages, or ''
-- ARGV[13]  bytes that count for the messages
-- ARGV[14]  number of the messages
-- ARGV[15]  `bounds_of`
-- ARGV[16]  milliseconds after which the will is due at the earliest
-- ARGV[17]  milliseconds after which the will is due, because the node publishes the will now, unless it confirms; or ''
--
-- Returns 0 if a later connection has the client id, and the connection stores nothing. Returns 2 if the messages are dropped,
-- because they would exceed a bound for bytes. Otherwise returns 1.
local node, app, client, generation, owner, address = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
if not has_lease(node) then return redis.error_reply('NOLEASE no lease') end
local name = app .. '/' .. client
local key, bounds, bytes, size = base .. ':s:' .. name, bounds_of(ARGV[15]), tonumber(ARGV[11]), tonumber(ARGV[13])
if not is_current(name, generation) then return 0 end
if owner == '' then owner, address = unpack(redis.call('HMGET', key, 'o', 'a')) end
if not owner then return 0 end
-- A connection that has not resumed the session yet does not make the stored state exact.
local unresumed, crashed = unpack(redis.call('HMGET', key, 'v', 'c'))
allow_when_full()
if ARGV[7] ~= '0' and redis.call('HGET', key, 'e') == '0' and redis.call('EXISTS', base .. ':ss:' .. name) == 0 then
  forget_session(app, client)
  return 0
end
remove_session(app, client)
local result = 1
redis.call('SET', base .. ':ss:' .. name, ARGV[8])
redis.call('DEL', base .. ':sp:' .. name, base .. ':sf:' .. name)
redis.call('HDEL', key, 'm')
redis.call('PERSIST', key)
if ARGV[12] ~= '' then
  local function has_room(part, most)
    return tonumber(redis.call('HGET', base .. ':sb', part) or '0') + bytes + size <= most
  end
  if has_room(app, bounds[4]) and (not is_anonymous(owner) or has_room(app .. '/a', bounds[5])) then
    redis.call('SET', base .. ':sf:' .. name, ARGV[12])
    redis.call('HSET', key, 'm', ARGV[14])
    bytes = bytes + size
  else
    result = 2
  end
end
redis.call('HSET', key, 'o', owner, 'a', address, 'g', generation, 'n', '', 'e', ARGV[7], 'b', bytes,
  'c', unresumed and crashed or '0')
set_will(name, ARGV[9], ARGV[10])
local now = wall()
leave_session(app, client, now, tonumber(ARGV[16]), bounds)
if ARGV[17] ~= '' then
  redis.call('HSET', key, 'y', '1')
  redis.call('ZADD', base .. ':sd', now + ARGV[17], name)
end
return result
