-- Gives a client id and its session to a new connection. If the reply was lost, the script runs again, and returns the same reply.
-- A session that is not resumed becomes a due session with a name of its own, `APP/CLIENT`, a zero byte and its generation: the
-- node removes the filters, publishes the will, and confirms. If the node does not confirm, any node gets the session.
--
-- KEYS[1]   base of the shard's keys
-- ARGV[1]   node of the connection
-- ARGV[2]   app
-- ARGV[3]   client id
-- ARGV[4]   owner of the client id: kind, slash, name
-- ARGV[5]   address of an anonymous client, or ''
-- ARGV[6]   1 if an absent session ends instead of being resumed, else 0
-- ARGV[7]   milliseconds for which the session outlives the connection
-- ARGV[8]   will, or ''
-- ARGV[9]   milliseconds of the will's delay
-- ARGV[10]  random word of the claim
-- ARGV[11]  new session without subscriptions
-- ARGV[12]  generation of a connection that has ended or does not answer, or ''
-- ARGV[13]  `bounds_of`
-- ARGV[14]  milliseconds after which an ended session is due, unless it is confirmed
--
-- Returns one of these lists:
-- - `owner`: the client id has a session of another owner.
-- - `limit`: a new session would exceed a bound.
-- - `held`, generation: another living node has a connection of the client. This node gets a message to end the connection.
-- - `ok`, the new generation, 1 if the session is resumed, 1 if the copy is older than the end of its last connection, 1 if this
--   node confirms the end of the earlier session, the owner and the generation of the earlier connection, and the parts of the
--   earlier session, each of which may be '': the session, its progress, its deliveries, and its will.
local node, app, client, owner, address = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local expiry, bounds = tonumber(ARGV[7]), bounds_of(ARGV[13])
if not has_lease(node) then return redis.error_reply('NOLEASE no lease') end
local name = app .. '/' .. client
local key, now = base .. ':s:' .. name, wall()
local known, holder, known_owner, known_expiry, ends, crashed, early, given, word, flags =
  unpack(redis.call('HMGET', key, 'g', 'n', 'o', 'e', 'u', 'c', 'x', 'y', 't', 'r'))
local function reply(generation, resumes, has_ended, its_owner, its_generation)
  local found = {'ok', generation, resumes and 1 or 0, crashed == '1' and 1 or 0, has_ended and 1 or 0, its_owner, its_generation}
  local its_name = resumes and name or ended_name(name, its_generation)
  for _, part in ipairs({':ss:', ':sp:', ':sf:', ':sw:'}) do
    found[#found + 1] = (resumes or has_ended) and redis.call('GET', base .. part .. its_name) or ''
  end
  return found
end
if known_owner and word == ARGV[10] then
  local resumes, has_ended, its_generation, its_owner = string.match(flags, '^(%d)(%d) (%d+) (.*)$')
  return reply(known, resumes == '1', has_ended == '1', its_owner, its_generation)
end
local was_lasting, resumes = known_owner and tonumber(known_expiry) > 0, false
if known_owner then
  local is_over = early or (holder == '' and tonumber(ends) <= now)
  if not is_over and known_owner ~= owner and not is_anonymous(known_owner) then return {'owner'} end
  local is_elsewhere = holder ~= '' and holder ~= node and has_lease(holder)
  if is_elsewhere and ARGV[12] ~= known then
    redis.call(PUBLISH, base .. ':t:/' .. holder, '\8' .. table.concat({node, known, app, client}, '\0'))
    return {'held', known}
  end
  resumes = was_lasting and not is_over and ARGV[6] == '0' and known_owner == owner
end
if expiry > 0 and not was_lasting then
  local is_full = redis.call('ZCARD', base .. ':sa:' .. app) >= bounds[1]
  if is_anonymous(owner) then
    is_full = is_full or redis.call('ZCARD', base .. ':sy:' .. app) >= bounds[2]
      or (address ~= '' and redis.call('ZCARD', base .. ':sy:' .. app .. '/' .. address) >= bounds[3])
  end
  if is_full then return {'limit'} end
end
if known_owner then allow_when_full() end
local last = tonumber(redis.call('GET', base .. ':sg') or '0')
local generation = string.format('%.0f', math.max(last + 1, now * 1000))
redis.call('SET', base .. ':sg', generation)
redis.call('SET', base .. ':sg0', generation, 'NX')
local has_ended = false
if known_owner then
  local due = redis.call('ZSCORE', base .. ':sd', name)
  remove_session(app, client)
  redis.call('HDEL', key, 'u', 'q', 'x', 'y', unpack(PENDING))
  if not resumes then
    -- A node that has not ended its connection is probably dead. The will of a session that ended with this connection is dropped,
    -- because the client is back. If another node already ends the session (`given`), that node publishes the will.
    if not was_lasting and not given then set_will(name, '', 0) end
    has_ended = move_ended(name, known, known_owner, now, given and due or now + ARGV[14]) and not given
  end
end
redis.call('HSET', key, 'o', owner, 'a', address, 'g', generation, 'n', node, 't', ARGV[10],
  'r', (resumes and 1 or 0) .. (has_ended and 1 or 0) .. ' ' .. (known or '0') .. ' ' .. (known_owner or ''))
redis.call('HSETNX', key, 'b', '0')
redis.call('PERSIST', key)
if resumes then
  -- The earlier will and expiry are valid until the connection has resumed the session.
  if given then set_will(name, '', 0) end
  redis.call('HSET', key, 'v', '1', 'f', ARGV[7], 'j', ARGV[8], 'l', ARGV[9])
else
  redis.call('HDEL', key, 'c', 'm')
  redis.call('HSET', key, 'e', ARGV[7])
  set_will(name, ARGV[8], ARGV[9])
  if expiry > 0 then
    redis.call('SET', base .. ':ss:' .. name, ARGV[11])
    redis.call('HSET', key, 'c', '1')
  end
end
add_to_node(node, name)
return reply(generation, resumes, has_ended, known_owner or '', known or '0')
