-- Stores a copy of the session of a connected client.
--
-- KEYS[1]   base of the shard's keys
-- ARGV[1]   node of the connection
-- ARGV[2]   app
-- ARGV[3]   client id
-- ARGV[4]   generation of the connection
-- ARGV[5]   owner of the client id: kind, slash, name; '' stands for the owner and address of the stored session
-- ARGV[6]   address of an anonymous client, or ''
-- ARGV[7]   milliseconds for which the session outlives the connection
-- ARGV[8]   session, or '' if the resumption of the stored session is complete and the session has not changed
-- ARGV[9]   will, or ''
-- ARGV[10]  milliseconds of the will's delay
-- ARGV[11]  bytes that count for the session
-- ARGV[12]  1 if an absent session of this connection is stored again, because the broker has taken the node for dead; else 0
--
-- Returns 1, or 0 if a later connection has the client id.
local node, app, client, generation = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if not has_lease(node) then return redis.error_reply('NOLEASE no lease') end
local name = app .. '/' .. client
local key = base .. ':s:' .. name
if not is_current(name, generation) then return 0 end
local known, holder, its_owner, its_address, expiry, will, delay =
  unpack(redis.call('HMGET', key, 'g', 'n', 'o', 'a', 'f', 'j', 'l'))
if ARGV[8] == '' then
  if its_owner then
    allow_when_full()
    redis.call('HSET', key, 'c', '1')
    if expiry then
      redis.call('HSET', key, 'e', expiry)
      set_will(name, will, delay)
    end
    redis.call('HDEL', key, unpack(PENDING))
  end
  return 1
end
-- The connection has saved the session meanwhile: this step was delayed.
if holder == '' and known == generation and ARGV[12] == '0' then return 1 end
local owner, address = ARGV[5], ARGV[6]
if owner == '' then owner, address = its_owner, its_address end
if not owner then return 0 end
redis.call('SET', base .. ':ss:' .. name, ARGV[8])
redis.call('DEL', base .. ':sp:' .. name)
remove_session(app, client)
redis.call('HSET', key, 'o', owner, 'a', address, 'g', generation, 'n', node, 'e', ARGV[7], 'b', ARGV[11], 'c', '1')
redis.call('HDEL', key, 'u', 'q', 'x', 'y', 'f', 'j', 'l', 't', 'r')
redis.call('PERSIST', key)
set_will(name, ARGV[9], ARGV[10])
add_to_node(node, name)
if tonumber(redis.call('GET', base .. ':sg') or '0') < tonumber(generation) then redis.call('SET', base .. ':sg', generation) end
return 1
