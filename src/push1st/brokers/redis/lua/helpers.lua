-- Functions that several scripts share. `scripts.py` puts before a script only the functions that the script calls, because the
-- server defines these functions at each call. `scripts.py` replaces words such as CLOCK and PUBLISH by values.

local base = KEYS[1]

-- Publishes an edge (a member's join or leave, or a user's sign-in or sign-out) to the nodes that are subscribed to the channel.
local function edge(kind, app, channel, user, socket, id, received, info)
  redis.call(PUBLISH, base .. ':t:' .. app .. '/' .. channel,
    '\1' .. table.concat({kind, app, channel, user, socket, id, received, info}, '\0'))
end

-- Adds a hook event to the stream.
local function hook_event(kind, way, app, channel, received, socket, user, info)
  redis.call('XADD', base .. ':facts', 'MAXLEN', '~', MAX_HOOK_EVENTS, '*', 'k', kind, 'a', app, 'c', channel, 't', received,
    's', socket, 'u', user, 'i', info, 'w', way)
end

local function wants(hooked, way) return string.find(hooked, way, 1, true) ~= nil end

local function has_lease(node) return redis.call('EXISTS', base .. ':lease:' .. node) == 1 end

-- Returns the milliseconds since an arbitrary moment, on the server's clock. The script does not use the command TIME, because
-- the Redis user of push1st would need one more permission for this command (docs/scaling.md).
local function clock()
  local left = redis.call('PTTL', base .. ':clock')
  if left < 0 then
    left = CLOCK
    redis.call('SET', base .. ':clock', '', 'PX', left)
  end
  return string.format('%.0f', CLOCK - left)
end

-- Splits a field of BASE:gone or BASE:held into its parts: the letter m, c or u, then app, channel and user.
local function parts(field)
  local kind, app, rest = string.match(field, '^(.)/([^/]*)/(.*)$')
  if kind ~= 'm' then return kind, app, rest, '' end
  return kind, app, string.match(rest, '^([^\n]*)\n(.*)$')
end

-- Holds back a leaving edge from hooks. `read.lua` releases the edge later, unless the channel or member returns first.
local function hold(field, left, socket, received, info)
  redis.call('HSET', base .. ':held', field, table.concat({left, socket, received, info}, '\0'))
  redis.call('RPUSH', base .. ':held:order', left .. ' ' .. field)
end

-- Allows a script to write although the server's memory is full. Such a server rejects a script whose first write may need
-- memory. After a first write that needs no memory, the server accepts all writes of the script. So leaves and registrations are
-- always possible.
local function allow_when_full() redis.call('DEL', base .. ':none') end

-- Returns whether a node is subscribed to all its topics. A node subscribes to its inbox last, so a check of the inbox is enough.
local function is_subscribed(node)
  return redis.call('PUBSUB', PUBLISH == 'SPUBLISH' and 'SHARDNUMSUB' or 'NUMSUB', base .. ':t:/' .. node)[2] > 0
end

-- Returns whether the recovery is going on: nodes register their entries again, because the server has lost its state.
local function recovering() return redis.call('EXISTS', base .. ':recovering') == 1 end

-- Returns the number of other living nodes that would miss an event that is published now. A node whose lease ends in fewer than
-- `least` milliseconds has not renewed its lease in time. So such a node counts as cut off, even if it still has a connection.
-- A node that has just started (`least` is 0) does not wait for nodes without a connection, because these nodes may be dead.
-- During the recovery, a subscribed node without a lease has not registered its filters yet, so its copies would be missing.
local function nodes_not_here(node, least)
  local some = 0
  for _, other in ipairs(redis.call('SMEMBERS', base .. ':nodes')) do
    local lease = base .. ':lease:' .. other
    local state = other ~= node and redis.call('GET', lease)
    local is_cut = state == 'there' and least > 0 and (redis.call('PTTL', lease) < least or not is_subscribed(other))
    if state == 'back' or is_cut then
      some = some + 1
    end
  end
  for _, other in ipairs(redis.call('SMEMBERS', base .. ':away')) do
    if other ~= node and not has_lease(other) and (recovering() or not is_subscribed(other)) then
      some = some + 1
    end
  end
  return some
end

-- Sets the number of a node's subscriptions to a channel. Returns the number of subscriptions on all nodes, and the change.
local function count(mine, app, channel, n)
  local field = 'c/' .. app .. '/' .. channel
  local old = tonumber(redis.call('HGET', mine, field) or '0')
  if n == old then return tonumber(redis.call('HGET', base .. ':i:' .. app, channel) or '0'), 0 end
  if n > 0 then redis.call('HSET', mine, field, n) else redis.call('HDEL', mine, field) end
  local total = redis.call('HINCRBY', base .. ':i:' .. app, channel, n - old)
  if total <= 0 then redis.call('HDEL', base .. ':i:' .. app, channel) end
  return total, n - old
end

-- Defers a leave during the recovery, because another node may still register the same channel, member or user.
-- `flush_deferred.lua` publishes the leave after the recovery, unless the channel, member or user returns first.
local function defer(field, left, socket, id, received, hooked, info)
  local deferred = table.concat({left, socket, id, received, hooked, info}, '\0')
  if redis.call('HSET', base .. ':gone', field, deferred) == 1 then redis.call('RPUSH', base .. ':gone:order', field) end
end

-- Removes the field of an entering channel, member or user from BASE:gone and BASE:held.
-- Returns the field `w` (`scripts.py`) of the entering hook event.
local function entering(field, hooked)
  local held = redis.call('HDEL', base .. ':held', field) == 1
  if redis.call('HDEL', base .. ':gone', field) == 1 then return 'r' end
  return held and (wants(hooked, 'a') and 'ar' or 'r') or hooked
end

local function publish_removed(app, channel, user, left, socket, id, received, hooked, info, exclude)
  edge('-', app, channel, user, exclude, id, received, 'null')
  if wants(hooked, 's') then hold('m/' .. app .. '/' .. channel .. '\n' .. user, left, socket, received, info) end
end

local function publish_vacated(app, channel, left, socket, received, hooked)
  if wants(hooked, 'a') then hook_event('vacated', 'a', app, channel, received, socket, '', 'null') end
  if wants(hooked, 's') then hold('c/' .. app .. '/' .. channel, left, socket, received, 'null') end
end

local function publish_offline(app, user, socket, id, received)
  edge('off', app, '#watch-' .. user, user, socket, id, received, '')
end

local function vacate(app, channel, socket, id, received, hooked, deferred)
  if deferred then defer('c/' .. app .. '/' .. channel, clock(), socket, id, received, hooked, 'null')
  else publish_vacated(app, channel, clock(), socket, received, hooked) end
end

-- Removes a member from a node's entries, and from the channel if no other node has the member.
local function drop_member(mine, app, channel, user, socket, id, received, hooked, deferred)
  local members = base .. ':m:' .. app .. '/' .. channel
  if redis.call('HDEL', mine, 'm/' .. app .. '/' .. channel .. '\n' .. user) == 0 then return end
  local held = redis.call('HGET', members, user)
  if not held then return end
  local nodes, info = string.match(held, '^(%d+):(.*)$')
  if tonumber(nodes) > 1 then
    redis.call('HSET', members, user, (tonumber(nodes) - 1) .. ':' .. info)
    return
  end
  redis.call('HDEL', members, user)
  if deferred then defer('m/' .. app .. '/' .. channel .. '\n' .. user, clock(), socket, id, received, hooked, info)
  else publish_removed(app, channel, user, clock(), socket, id, received, hooked, info, socket) end
end

-- Removes a signed-in user from a node's entries, and from the app if no other node has the user.
local function drop_user(mine, app, user, socket, id, received, deferred)
  if redis.call('HDEL', mine, 'u/' .. app .. '/' .. user) == 0 then return end
  if redis.call('HINCRBY', base .. ':u:' .. app, user, -1) > 0 then return end
  redis.call('HDEL', base .. ':u:' .. app, user)
  if deferred then defer('u/' .. app .. '/' .. user, clock(), socket, id, received, '', '')
  else publish_offline(app, user, socket, id, received) end
end

-- Sets the value of a filter or group of a node, and publishes the change to all nodes. The value 0 removes the filter. The node ''
-- is the broker: see `known_filters.py`.
local function set_filter(app, node, name, value)
  local filters, field = base .. ':f', app .. '/' .. node .. '/' .. name
  if (redis.call('HGET', filters, field) or '0') == value then return end
  if value == '0' then redis.call('HDEL', filters, field) else redis.call('HSET', filters, field, value) end
  redis.call(PUBLISH, base .. ':t:/#filters', '\6' .. table.concat({app, node, name, value}, '\0'))
  if node == '' or string.sub(name, 1, 7) ~= '$share/' then return end
  local group = base .. ':g:' .. app .. '/' .. name
  if value ~= '0' then
    redis.call('HSET', group, node, value)
  else
    redis.call('HDEL', group, node)
    if redis.call('HLEN', group) == redis.call('HEXISTS', group, '') then redis.call('DEL', group) end
  end
end

-- Returns the word and the last offset of a channel's history, and the offset of the oldest kept message, which is one more than
-- the last offset if no message is kept. Creates a missing counter, and keeps the counter for `ms` milliseconds at least.
local function history_of(app, channel, new_word, ms)
  local stream, counter = base .. ':h:' .. app .. '/' .. channel, base .. ':hm:' .. app .. '/' .. channel
  local known = redis.call('HMGET', counter, 'e', 'o')
  local word, last = known[1], tonumber(known[2] or '')
  if not word or not last then
    word, last = new_word, 0
    redis.call('HSET', counter, 'e', word, 'o', 0)
    redis.call('DEL', stream)
  end
  if redis.call('PTTL', counter) < tonumber(ms) then redis.call('PEXPIRE', counter, ms) end
  local oldest = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  if not oldest then return word, last, last + 1 end
  local offset, n = string.match(oldest[1], '^(%d+)%-(%d+)$')
  return word, last, offset - n + 1
end

-- Returns the entries of a channel's stream with messages after an offset, newest first, as a flat list: id, messages, id, and so
-- on. If the messages of these entries have more than `bytes` bytes, the oldest entries are left out. Also returns the bytes.
local function newest_entries(app, channel, after, bytes)
  local found, size, newest = {}, 0, '+'
  while true do
    local entries = redis.call('XREVRANGE', base .. ':h:' .. app .. '/' .. channel, newest, after + 1, 'COUNT', 16)
    for _, entry in ipairs(entries) do
      if size + #entry[2][2] > bytes then return found, size end
      size = size + #entry[2][2]
      found[#found + 1] = entry[1]
      found[#found + 1] = entry[2][2]
    end
    if #entries < 16 then return found, size end
    newest = '(' .. entries[16][1]
  end
end

-- Returns the state of a log: its word, the offset of its last message, its bytes, the offset of its oldest message, and the
-- suffix of its budget ('' or 'a'); nil without the log. Stores where a generation of the server's state begins, because messages
-- of an earlier generation may have had offsets of the present one. Only 8 generations are kept.
local function log_of(name, generation)
  local state = base .. ':lm:' .. name
  local known = redis.call('HMGET', state, 'e', 'o', 'b', 'f', 'k', 'g')
  if not known[1] then return nil end
  if known[6] ~= generation then
    local starts = redis.call('HGET', state, 's') .. generation .. ':' .. known[2] .. ' '
    if select(2, string.gsub(starts, ' ', '')) > 8 then starts = string.gsub(starts, '^[^ ]* ', '') end
    redis.call('HSET', state, 'g', generation, 's', starts)
  end
  return known[1], tonumber(known[2]), tonumber(known[3]), tonumber(known[4]), known[5]
end

-- Drops the oldest entries of a log. `count`: the number of entries. Returns the number of their messages, the bytes of the log, and
-- the offset of its oldest message. The whole stream may have expired before.
local function drop_oldest(app, filter, count)
  local name = app .. '/' .. filter
  local state, stream = base .. ':lm:' .. name, base .. ':l:' .. name
  local last, bytes, suffix = unpack(redis.call('HMGET', state, 'o', 'b', 'k'))
  if not last then return 0, 0, 1 end
  local entries = redis.call('XRANGE', stream, '-', '+', 'COUNT', count + 1)
  local n, left, first, order = 0, 0, last + 1, base .. ':lo' .. suffix .. ':' .. app
  for i = 1, math.min(count, #entries) do
    n = n + string.match(entries[i][1], '%d+$')
    left = left + #entries[i][2][2] + ENTRY_BYTES
  end
  if entries[count + 1] then
    local id, fields = unpack(entries[count + 1])
    local its_last, its_n = string.match(id, '^(%d+)%-(%d+)$')
    left, first = bytes - left, its_last - its_n + 1
    redis.call('XTRIM', stream, 'MINID', id)
    redis.call('ZADD', order, fields[4], filter)
  else
    left = 0
    redis.call('DEL', stream)
    redis.call('ZREM', order, filter)
  end
  redis.call('HSET', state, 'b', left, 'f', first)
  redis.call('DECRBY', base .. ':lb' .. suffix .. ':' .. app, bytes - left)
  return n, left, first
end

-- Appends the messages of a publish to the existing logs of some filters. Returns the number of these logs, and the number of
-- messages that the logs have dropped to keep their bounds. A log drops a twentieth of its entries at once, because each step takes
-- longer than its entries. A call drops at most 200 entries, so that it takes a bounded time; the next call drops more. The arguments
-- begin with ARGV[at]; without them, no log exists:
--   ARGV[at]      batch of the messages for logs; '': `messages`
--   ARGV[at + 1]  number of these messages
--   ARGV[at + 2]  time of the messages in milliseconds
--   ARGV[at + 3]  maximum number of messages of a log
--   ARGV[at + 4]  milliseconds for which messages are kept
--   ARGV[at + 5]  part of the bounds for bytes that this shard may use: 1 / this number. A log without wildcards is in one shard.
--   ARGV[at + 6…] filters; the channel itself if the app has a log without wildcards
local function append_to_logs(app, channel, generation, messages, at)
  local found, dropped, drops = 0, 0, 200
  if not ARGV[at] then return found, dropped end
  local data, n, now, most, part = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3]), tonumber(ARGV[at + 5])
  if data == '' then data = messages end
  local size = #data + ENTRY_BYTES
  for i = at + 6, #ARGV do
    local filter = ARGV[i]
    local name = app .. '/' .. filter
    local word, last, bytes, first, suffix = log_of(name, generation)
    if word then
      local state, stream, id = base .. ':lm:' .. name, base .. ':l:' .. name, last + n .. '-' .. n
      found, bytes = found + 1, bytes + size
      -- Before XADD, because a server whose memory is full must reject the script, instead of losing the stream.
      redis.call('HSET', state, 'o', last + n, 'b', bytes)
      if redis.pcall('XADD', stream, id, 'm', data, 't', now).err then
        redis.call('DEL', stream)
        redis.call('XADD', stream, id, 'm', data, 't', now)
      end
      redis.call('PEXPIRE', stream, ARGV[at + 4])
      if bytes == size then redis.call('ZADD', base .. ':lo' .. suffix .. ':' .. app, now, filter) end
      local total = redis.call('INCRBY', base .. ':lb' .. suffix .. ':' .. app, size)
      local most_bytes = MAX_LOG_BYTES / (filter == channel and 1 or part)
      while drops > 0 and (last + n - first >= most or bytes > most_bytes) do
        local count = redis.call('XLEN', stream)
        if count <= 1 then break end
        count = math.min(drops, math.max(1, math.floor(count / 20)))
        local lost, left, its_first = drop_oldest(app, filter, count)
        drops, dropped, total = drops - count, dropped + lost, total - bytes + left
        bytes, first = left, its_first
      end
      most_bytes = MAX_APP_BYTES / part / (suffix == '' and 1 or ANONYMOUS_PART)
      while drops > 0 and total > most_bytes do
        local oldest = redis.call('ZRANGE', base .. ':lo' .. suffix .. ':' .. app, 0, 0)[1]
        if not oldest then break end
        drops, dropped = drops - 1, dropped + drop_oldest(app, oldest, 1)
        total = tonumber(redis.call('GET', base .. ':lb' .. suffix .. ':' .. app))
      end
    end
  end
  return found, dropped
end

-- Moves a log to the budget of its clients, and ends a log that no client watches. Publishes the change to all nodes.
-- `listed`: the name in BASE:f, which is '' for all logs without wildcards together.
local function charge_log(app, filter, listed)
  local name = app .. '/' .. filter
  local state, stream = base .. ':lm:' .. name, base .. ':l:' .. name
  local bytes, old = unpack(redis.call('HMGET', state, 'b', 'k'))
  if not bytes then return end
  local suffix = redis.call('EXISTS', base .. ':lw:' .. name) == 1 and ''
    or redis.call('EXISTS', base .. ':lwa:' .. name) == 1 and 'a'
  if suffix == old then return end
  if old ~= '-' then
    local order = base .. ':lo' .. old .. ':' .. app
    local oldest = redis.call('ZSCORE', order, filter)
    redis.call('ZREM', order, filter)
    redis.call('DECRBY', base .. ':lb' .. old .. ':' .. app, bytes)
    if oldest and suffix then redis.call('ZADD', base .. ':lo' .. suffix .. ':' .. app, oldest, filter) end
  end
  if suffix then
    redis.call('HSET', state, 'k', suffix)
    redis.call('INCRBY', base .. ':lb' .. suffix .. ':' .. app, bytes)
  else
    redis.call('DEL', state, stream)
  end
  local value = not suffix and '0' or suffix == 'a' and '2' or '1'
  if listed == '' then
    if suffix and old ~= '-' then return end
    local exact = redis.call('INCRBY', base .. ':lx:' .. app, suffix and 1 or -1)
    if exact <= 0 then redis.call('DEL', base .. ':lx:' .. app) end
    value = exact > 0 and '1' or '0'
  end
  set_filter(app, '', listed, value)
end

-- Returns the time on the server's wall clock in milliseconds. See `clock` for the reason why the script does not use TIME.
local function wall()
  local left = redis.call('PTTL', base .. ':wall')
  if left < 0 then
    redis.call('SET', base .. ':wall', '', 'PXAT', WALL)
    left = redis.call('PTTL', base .. ':wall')
  end
  return WALL - left
end

local function is_anonymous(owner) return string.sub(owner, 1, 10) == 'anonymous/' end

-- Returns the bounds for absent sessions (`limits` in `session_state.py`): the numbers of sessions of an app, of its anonymous
-- clients and of one address, and the bytes of the app and of its anonymous clients. `ends` is the number of sessions that this
-- call may end, so that the call takes a bounded time; the next absent session continues.
local function bounds_of(text)
  local found = {ends = 40}
  for one in string.gmatch(text, '%d+') do found[#found + 1] = tonumber(one) end
  return found
end

-- Returns whether a connection with a generation has the client id. After a loss of the state, the connections with generations
-- before the first one of the new state are stored again.
local function is_current(name, generation)
  local known = redis.call('HGET', base .. ':s:' .. name, 'g')
  if known then return tonumber(known) <= tonumber(generation) end
  local first = redis.call('GET', base .. ':sg0')
  return not first or tonumber(generation) < tonumber(first)
end

-- Removes a session from the set of its node, or from the sets of absent sessions.
local function remove_session(app, client)
  local name = app .. '/' .. client
  local node, owner, address, bytes = unpack(redis.call('HMGET', base .. ':s:' .. name, 'n', 'o', 'a', 'b'))
  if not node then return end
  redis.call('ZREM', base .. ':sd', name)
  if node ~= '' then
    redis.call('SREM', base .. ':sn:' .. node, name)
  elseif redis.call('ZREM', base .. ':sa:' .. app, client) == 1 then
    redis.call('HINCRBY', base .. ':sb', app, -bytes)
    if is_anonymous(owner) then
      redis.call('ZREM', base .. ':sy:' .. app, client)
      redis.call('HINCRBY', base .. ':sb', app .. '/a', -bytes)
      if address ~= '' then redis.call('ZREM', base .. ':sy:' .. app .. '/' .. address, client) end
    end
  end
end

-- Deletes a session. Its generation stays for a minute, so that a step of its connection that runs again is valid.
local function forget_session(app, client)
  remove_session(app, client)
  local name = app .. '/' .. client
  local key = base .. ':s:' .. name
  local generation = redis.call('HGET', key, 'g')
  redis.call('DEL', key, base .. ':ss:' .. name, base .. ':sp:' .. name, base .. ':sf:' .. name, base .. ':sw:' .. name)
  if generation then
    redis.call('HSET', key, 'g', generation)
    redis.call('PEXPIRE', key, 60000)
  end
end

-- Ends the sessions that have been absent for the longest time, until a share of the absent sessions keeps its bounds.
local function end_oldest(app, oldest, share, most, part, most_bytes, now, bounds)
  while bounds.ends > 0 do
    bounds.ends = bounds.ends - 1
    local is_kept = redis.call('ZCARD', share) <= most
    if is_kept and (not part or tonumber(redis.call('HGET', base .. ':sb', part) or '0') <= most_bytes) then return end
    local client = redis.call('ZRANGE', oldest, 0, 0)[1]
    if not client then return end
    remove_session(app, client)
    redis.call('HSET', base .. ':s:' .. app .. '/' .. client, 'x', '1')
    redis.call('ZADD', base .. ':sd', now, app .. '/' .. client)
  end
end

-- Makes a session absent: the times of its expiry and its will begin. The will is due after `least` milliseconds or later.
-- A session that ends with its connection only waits until its will is published, and its filters are removed.
local function leave_session(app, client, now, least, bounds)
  remove_session(app, client)
  local name = app .. '/' .. client
  local key = base .. ':s:' .. name
  local owner, address, bytes, expiry, delay = unpack(redis.call('HMGET', key, 'o', 'a', 'b', 'e', 'd'))
  expiry = tonumber(expiry)
  if expiry == 0 and not delay and redis.call('EXISTS', base .. ':ss:' .. name) == 0 then
    forget_session(app, client)
    return
  end
  local ends = now + (expiry > 0 and expiry or least)
  local due = ends
  redis.call('HSET', key, 'n', '', 'u', ends)
  redis.call('HDEL', key, 'x', 'y', 'q', unpack(PENDING))
  if delay then
    local at = now + math.max(tonumber(delay), least)
    redis.call('HSET', key, 'q', at)
    due = math.min(ends, at)
  end
  redis.call('ZADD', base .. ':sd', due, name)
  if expiry == 0 then return end
  local all, anonymous = base .. ':sa:' .. app, base .. ':sy:' .. app
  redis.call('ZADD', all, now, client)
  redis.call('HINCRBY', base .. ':sb', app, bytes)
  if not is_anonymous(owner) then
    end_oldest(app, all, all, bounds[1], app, bounds[4], now, bounds)
    return
  end
  redis.call('ZADD', anonymous, now, client)
  redis.call('HINCRBY', base .. ':sb', app .. '/a', bytes)
  end_oldest(app, anonymous, all, bounds[1], app, bounds[4], now, bounds)
  end_oldest(app, anonymous, anonymous, bounds[2], app .. '/a', bounds[5], now, bounds)
  if address ~= '' then
    local of_address = anonymous .. '/' .. address
    redis.call('ZADD', of_address, now, client)
    end_oldest(app, of_address, of_address, bounds[3], nil, 0, now, bounds)
  end
end

-- Stores the will of a session, and the delay of the will in milliseconds. An empty text stands for no will.
local function set_will(name, will, delay)
  if will == '' then
    redis.call('DEL', base .. ':sw:' .. name)
    redis.call('HDEL', base .. ':s:' .. name, 'd')
  else
    redis.call('SET', base .. ':sw:' .. name, will)
    redis.call('HSET', base .. ':s:' .. name, 'd', delay)
  end
end

-- Returns the name of an ended session whose client id has a later session.
local function ended_name(name, generation) return name .. '\0' .. generation end

-- Makes a session due under a name of its own, because a new session gets its client id. Returns whether there is anything to end.
local function move_ended(name, generation, owner, now, due)
  local its_name, is_any = ended_name(name, generation), false
  for _, part in ipairs({':ss:', ':sf:', ':sw:'}) do
    if redis.call('EXISTS', base .. part .. name) == 1 then
      redis.call('RENAME', base .. part .. name, base .. part .. its_name)
      is_any = true
    end
  end
  redis.call('DEL', base .. ':sp:' .. name)
  redis.call('HDEL', base .. ':s:' .. name, 'd')
  if is_any then
    redis.call('HSET', base .. ':s:' .. its_name, 'o', owner, 'a', '', 'g', generation, 'n', '', 'e', '0', 'b', '0', 'u', now,
      'y', '1')
    redis.call('ZADD', base .. ':sd', due, its_name)
  end
  return is_any
end

local function add_to_node(node, name)
  redis.call('SADD', base .. ':sn', node)
  redis.call('SADD', base .. ':sn:' .. node, name)
end

-- Ends the retained message of a channel: it does not count any more, and its name is not listed. Its data remain.
local function uncount_retained(app, channel)
  local sizes, sums = base .. ':kh:' .. app, base .. ':kb:' .. app
  local held = redis.call('HGET', sizes, channel)
  if not held then return end
  local bytes, anonymous, address = string.match(held, '^(%d+)(a?)(.*)$')
  redis.call('HDEL', sizes, channel)
  redis.call('ZREM', base .. ':kn:' .. app, channel)
  redis.call('ZREM', base .. ':kx:' .. app, channel)
  redis.call('HINCRBY', sums, 'bytes', -bytes)
  if anonymous ~= '' then
    redis.call('HINCRBY', sums, 'anonymous-count', -1)
    redis.call('HINCRBY', sums, 'anonymous-bytes', -bytes)
    if address ~= '' and redis.call('HINCRBY', sums, '@' .. address, -1) <= 0 then redis.call('HDEL', sums, '@' .. address) end
  end
  if redis.call('EXISTS', sizes) == 0 then
    redis.call('DEL', sums)
    redis.call('SREM', base .. ':ka', app)
  end
end

-- Ends up to 1000 expired retained messages of an app. Returns whether there were any.
local function expire_retained(app)
  local expiring = base .. ':kx:' .. app
  if redis.call('EXISTS', expiring) == 0 then return false end
  local expired = redis.call('ZRANGEBYSCORE', expiring, '-inf', clock(), 'LIMIT', 0, 1000)
  for _, channel in ipairs(expired) do uncount_retained(app, channel) end
  return #expired > 0
end

-- Returns the bound that a retained message would exceed; nil if there is room, and the holder for which the message counts. A
-- message that is not larger than the channel's earlier one always has room, and counts for the holder of the earlier one.
local function room_for_retained(app, channel, size, holder)
  local sizes, sums, address = base .. ':kh:' .. app, base .. ':kb:' .. app, string.sub(holder, 2)
  local function exceeded()
    local old, its_holder = string.match(redis.call('HGET', sizes, channel) or '', '^(%d+)(.*)$')
    if old and size <= tonumber(old) then
      holder = its_holder
      return nil
    end
    local bytes, anonymous = tonumber(old or '0'), its_holder and its_holder ~= ''
    local known = redis.call('HMGET', sums, 'bytes', 'anonymous-count', 'anonymous-bytes', '@' .. address)
    local function over(sum, is_included, its_own, more, most) return (sum or 0) + more - (is_included and its_own or 0) > most end
    if over(redis.call('HLEN', sizes), old, 1, 1, MAX_RETAINED) then return 'count' end
    if over(known[1], old, bytes, size, MAX_RETAINED_BYTES) then return 'bytes' end
    if holder == '' then return nil end
    if over(known[2], anonymous, 1, 1, MAX_ANONYMOUS_RETAINED) then return 'anonymous-count' end
    if over(known[3], anonymous, bytes, size, MAX_ANONYMOUS_RETAINED_BYTES) then return 'anonymous-bytes' end
    if address ~= '' and over(known[4], its_holder == holder, 1, 1, MAX_ADDRESS_RETAINED) then return 'address' end
    return nil
  end
  local bound = exceeded()
  if bound and expire_retained(app) then bound = exceeded() end
  return bound, holder
end

-- Makes a message the retained message of its channel, in place of an earlier one or of the cached event.
local function retain(app, channel, message, ms, id, size, holder)
  local sizes, sums = base .. ':kh:' .. app, base .. ':kb:' .. app
  local key = base .. ':k:' .. app .. '/' .. channel
  if tonumber(ms) > 0 then redis.call('SET', key, message, 'PX', ms) else redis.call('SET', key, message) end
  uncount_retained(app, channel)
  redis.call('ZREM', base .. ':kc:' .. app, channel)
  if redis.call('HSET', sizes, channel, size .. holder) == 1 and redis.call('HLEN', sizes) == 1 then
    redis.call('SADD', base .. ':ka', app)
  end
  redis.call('ZADD', base .. ':kn:' .. app, id, channel)
  redis.call('HINCRBY', sums, 'bytes', size)
  if holder ~= '' then
    redis.call('HINCRBY', sums, 'anonymous-count', 1)
    redis.call('HINCRBY', sums, 'anonymous-bytes', size)
    if #holder > 1 then redis.call('HINCRBY', sums, '@' .. string.sub(holder, 2), 1) end
  end
  if tonumber(ms) > 0 then redis.call('ZADD', base .. ':kx:' .. app, clock() + ms, channel) end
end

-- Removes the retained message or the cached event of a channel.
local function drop_retained(app, channel)
  redis.call('DEL', base .. ':k:' .. app .. '/' .. channel)
  uncount_retained(app, channel)
  redis.call('ZREM', base .. ':kc:' .. app, channel)
end

-- Caches the newest event of a cache channel for `ms` milliseconds, in place of the channel's retained message. Without time,
-- removes both. Only the newest events are listed.
local function cache(app, channel, message, ms, id)
  if tonumber(ms) <= 0 then return drop_retained(app, channel) end
  redis.call('SET', base .. ':k:' .. app .. '/' .. channel, message, 'PX', ms)
  uncount_retained(app, channel)
  local names = base .. ':kc:' .. app
  if redis.call('ZADD', names, id, channel) == 1 then
    redis.call('ZREMRANGEBYRANK', names, 0, -MAX_CACHED_EVENTS - 1)
  end
  redis.call('PEXPIRE', names, ms)
end

-- Returns a new id of an entry of a group. Ids grow, also after a loss of the state, because they begin with the server's time.
local function entry_id()
  local last = tonumber(redis.call('GET', base .. ':gi') or '0')
  local id = string.format('%.0f', math.max(last + 1, wall() * 1000))
  redis.call('SET', base .. ':gi', id)
  return id
end

-- Returns the bytes that a message in a log of a group counts.
local function entry_size(data) return #data + ENTRY_BYTES end

-- Stores an entry of a group for a node. `field`: APP/GROUP, a newline, and the id of the entry. Returns false, and stores nothing,
-- if the entries of the app would exceed the bound for bytes.
local function own_entry(node, app, field, data, part)
  local size = #field + #data + ENTRY_BYTES
  if redis.call('HINCRBY', base .. ':gb', app, size) > MAX_APP_BYTES / part then
    redis.call('HINCRBY', base .. ':gb', app, -size)
    return false
  end
  redis.call('HSET', base .. ':ge:' .. node, field, data)
  return true
end

-- Removes an entry of a group from a node, and returns its message; nil if the node does not have the entry.
local function remove_entry(node, field)
  local entries = base .. ':ge:' .. node
  local data = redis.call('HGET', entries, field)
  if not data then return nil end
  redis.call('HDEL', entries, field)
  local app = string.match(field, '^[^/]*')
  if redis.call('HINCRBY', base .. ':gb', app, -(#field + #data + ENTRY_BYTES)) <= 0 then
    redis.call('HDEL', base .. ':gb', app)
  end
  return data
end

-- Keeps a message of a group in the group's log, if a session watches the log. Returns 1 if so, else 0, and the number of messages
-- that logs have dropped to keep their bounds. `bounds`: see `give_to_group`.
local function keep_for_group(app, name, data, bounds)
  local state, stream = base .. ':lm:' .. app .. '/' .. name, base .. ':l:' .. app .. '/' .. name
  local bytes, suffix = unpack(redis.call('HMGET', state, 'b', 'k'))
  if not bytes then return 0, 0 end
  local now, id, size, dropped = wall(), entry_id(), entry_size(data), 0
  if redis.pcall('XADD', stream, id .. '-1', 'm', data, 't', now).err then
    redis.call('DEL', stream)
    redis.call('XADD', stream, id .. '-1', 'm', data, 't', now)
  end
  redis.call('PEXPIRE', stream, bounds[2])
  redis.call('HSET', state, 'o', id, 'b', bytes + size)
  local order, total = base .. ':lo' .. suffix .. ':' .. app, base .. ':lb' .. suffix .. ':' .. app
  if bytes == '0' then redis.call('ZADD', order, now, name) end
  redis.call('INCRBY', total, size)
  local function is_over(count)
    return count > bounds[1] or tonumber(redis.call('HGET', state, 'b')) > MAX_LOG_BYTES / bounds[3] and count > 1
  end
  while is_over(redis.call('XLEN', stream)) do dropped = dropped + drop_oldest(app, name, 1) end
  local most = MAX_APP_BYTES / bounds[3] / (suffix == '' and 1 or ANONYMOUS_PART)
  while tonumber(redis.call('GET', total)) > most do
    local oldest = redis.call('ZRANGE', order, 0, 0)[1]
    if not oldest then break end
    dropped = dropped + drop_oldest(app, oldest, 1)
  end
  return 1, dropped
end

-- Gives a message to a node with connected members of a group. The nodes have turns, and a node has one turn for each of its
-- members. If there is no node, the log of the group keeps the message, or else the message is dropped.
-- `tried`: between slashes, the nodes whose members may not receive the message. `bounds`: the maximum number of messages of a log,
-- the milliseconds for which a log keeps messages, and the part of the bounds for bytes that this shard may use.
-- Returns 1 if a node or the log has the message, else 0, and the number of messages that were dropped to keep bounds.
local function give_to_group(app, name, data, tried, bounds)
  local group, total = base .. ':g:' .. app .. '/' .. name, 0
  local nodes = redis.call('HGETALL', group)
  for i = 1, #nodes, 2 do
    local is_tried = nodes[i] == '' or string.find(tried, '/' .. nodes[i] .. '/', 1, true)
    nodes[i + 1] = is_tried and 0 or tonumber(nodes[i + 1])
    total = total + nodes[i + 1]
  end
  if total == 0 then return keep_for_group(app, name, data, bounds) end
  local turn, i = redis.call('HINCRBY', group, '', 1) % total, 1
  while turn >= nodes[i + 1] do
    turn = turn - nodes[i + 1]
    i = i + 2
  end
  local node, id = nodes[i], entry_id()
  local is_stored = own_entry(node, app, app .. '/' .. name .. '\n' .. id, data, bounds[3])
  if not is_stored then id = '0' end
  redis.call(PUBLISH, base .. ':t:/' .. node, '\10' .. table.concat({app, name, id, tried, data}, '\0'))
  return 1, is_stored and 0 or 1
end

-- Gives the messages of a publish to groups. Returns the number of groups and logs that have the messages, and the number of
-- messages that were dropped to keep bounds. The arguments begin with ARGV[at]; `count` is their number:
--   ARGV[at]      `bounds` of `give_to_group`, as a text
--   ARGV[at + 1]  number of groups, N
--   ARGV[at + 2…] N groups, then the messages
local function give_to_groups(app, at, count)
  local given, dropped = 0, 0
  if count == 0 then return given, dropped end
  local bounds, first = bounds_of(ARGV[at]), at + 2 + ARGV[at + 1]
  for i = at + 2, first - 1 do
    local is_given, lost = 0, 0
    for j = first, at + count - 1 do
      is_given, lost = give_to_group(app, ARGV[i], ARGV[j], '/', bounds)
      dropped = dropped + lost
    end
    given = given + is_given
  end
  return given, dropped
end
