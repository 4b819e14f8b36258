"""The steps that must be atomic, as Lua scripts, each with the edges it causes.

All keys of a shard are in one hash slot, behind its base (`prefix:{number}`), which is the one declared key:

    BASE:schema       `SCHEMA` of the node that wrote it, the version of this layout; a node of another schema is rejected
    BASE:epoch        a random word; another one, or none: the server has lost its state
    BASE:recovering   there while nodes announce their entries again after that
    BASE:gone         hash: channels, members and users that left during recovery and are on no node, in fields like those of
                      a node → when, socket, id, received, which facts hooks want, info; published when recovery is over
    BASE:gone:order   list: those fields, in the order in which they left
    BASE:held         hash: channels that became empty and members that left. Their facts are held back, because most return
                      at once; in the same fields → when, socket, received, info
    BASE:held:order   list: the time at which each of them left, and its field, oldest first
    BASE:nodes        set: the nodes that may have entries
    BASE:lease:NODE   exists while the node is alive: `new` until the node is subscribed to its topics for the first time,
                      `there` while it is subscribed, `back` after it has entered again and until it is subscribed again
    BASE:away         set: nodes that were alive according to other nodes, and have not entered since the state was lost
    BASE:n:NODE       hash: its entries: c/APP/CHANNEL → subscriptions, m/APP/CHANNEL\\nUSER, u/APP/USER, q/APP → connections
    BASE:i:APP        hash: channel → subscriptions
    BASE:m:APP/CHANNEL  hash: user on a presence channel → number of nodes that have it, ":", its info
    BASE:u:APP        hash: user who has signed in → number of nodes that have it
    BASE:q            hash: app → connections
    BASE:k:APP/CHANNEL  the last event of a cache channel
    BASE:claim:APP/CHANNEL  there while nobody else may tell the channel how many subscribers it has
    BASE:ledger       set: the ledger of a reader (`facts.py`) that stopped before it had compared the ledger with the roster
    BASE:clock        a key with a very long time to live: the scripts measure time by its remaining time
    BASE:numbers      hash: number → node: the ends of message ids
    BASE:facts        stream: what happened, for hooks; over MAX_FACTS the oldest are lost
    BASE:facts:read   the last of them that was read
    BASE:reader       the node that reads them, there while it is alive
    BASE:term         a number that grows with each heartbeat of the reader, and the name of that node; both stay when it ends
    BASE:t:APP/CHANNEL  the channel's topic

Every change names the node's own number (its subscriptions, whether it has the user), never a difference: so a step
that is done twice, or again after a lost reply, is done once.

An app's hooks may want edges at once (`a`), settled (`s`), both, or none. `w` of a fact has the hooks that the fact is for.
Two more values of `w` are for the reader only. `r`: a channel or member returned while its leaving edge was held back. `h`: an
earlier process had held back the leaving edge of this channel or member when it stopped.
"""

import hashlib

import msgspec

SCHEMA = 1
"""increase it with each change after which nodes of the previous version misread the keys or messages of this one"""
MAX_FACTS = 100_000
"""facts that wait for their reader, about"""
CLOCK_MS = 10**13
"""time to live of a new `BASE:clock`: three centuries"""

_COMMON = """
local base = KEYS[1]
local publish = 'PUBLISH'
local function edge(kind, app, channel, user, socket, id, received, info)
  redis.call(publish, base .. ':t:' .. app .. '/' .. channel,
    '\\1' .. table.concat({kind, app, channel, user, socket, id, received, info}, '\\0'))
end
local function fact(kind, way, app, channel, received, socket, user, info)
  redis.call('XADD', base .. ':facts', 'MAXLEN', '~', 'MAX_FACTS', '*', 'k', kind, 'a', app, 'c', channel, 't', received,
    's', socket, 'u', user, 'i', info, 'w', way)
end
local function wants(hooked, way) return string.find(hooked, way, 1, true) ~= nil end
-- Milliseconds since an arbitrary moment, on the server's clock. TIME would need one more right of the user (docs/scaling.md).
local function clock()
  local left = redis.call('PTTL', base .. ':clock')
  if left < 0 then
    left = CLOCK
    redis.call('SET', base .. ':clock', '', 'PX', left)
  end
  return string.format('%.0f', CLOCK - left)
end
-- Splits a field of `gone` or `held` into m, c or u, app, channel, user.
local function parts(field)
  local kind, app, rest = string.match(field, '^(.)/([^/]*)/(.*)$')
  if kind ~= 'm' then return kind, app, rest, '' end
  return kind, app, string.match(rest, '^([^\\n]*)\\n(.*)$')
end
-- Holds back a leaving edge for hooks. READ releases it, unless the channel or member is back by then.
local function hold(field, left, socket, received, info)
  redis.call('HSET', base .. ':held', field, table.concat({left, socket, received, info}, '\\0'))
  redis.call('RPUSH', base .. ':held:order', left .. ' ' .. field)
end
-- A server that is full refuses a script's first write, if that may need memory, but none behind one that needs none: so
-- who leaves, and a node that comes back, are always let.
local function let() redis.call('DEL', base .. ':none') end
-- A node subscribes to its inbox last, so a node whose inbox has a subscriber is subscribed to all its topics.
local function is_subscribed(node)
  return redis.call('PUBSUB', publish == 'SPUBLISH' and 'SHARDNUMSUB' or 'NUMSUB', base .. ':t:/' .. node)[2] > 0
end
-- Returns how many other living nodes would miss an event that is published now. If fewer than `least` milliseconds of a node's
-- lease are left, the node has given up its connection, even if the server has not noticed that yet.
-- A node that has just started (least is 0) does not wait for nodes without a connection, because they may be dead.
local function missing(node, least)
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
    if other ~= node and redis.call('EXISTS', base .. ':lease:' .. other) == 0 and not is_subscribed(other) then
      some = some + 1
    end
  end
  return some
end
local function recovering() return redis.call('EXISTS', base .. ':recovering') == 1 end
local function count(mine, app, channel, n)
  local field = 'c/' .. app .. '/' .. channel
  local old = tonumber(redis.call('HGET', mine, field) or '0')
  if n == old then return tonumber(redis.call('HGET', base .. ':i:' .. app, channel) or '0'), 0 end
  if n > 0 then redis.call('HSET', mine, field, n) else redis.call('HDEL', mine, field) end
  local total = redis.call('HINCRBY', base .. ':i:' .. app, channel, n - old)
  if total <= 0 then redis.call('HDEL', base .. ':i:' .. app, channel) end
  return total, n - old
end
-- Who leaves while nodes still announce theirs may be on one that has not yet: it is noted, and told by SETTLE unless it is
-- somewhere again by then.
local function note(field, left, socket, id, received, hooked, info)
  local noted = table.concat({left, socket, id, received, hooked, info}, '\\0')
  if redis.call('HSET', base .. ':gone', field, noted) == 1 then redis.call('RPUSH', base .. ':gone:order', field) end
end
-- Removes a field that enters from `gone` and `held`. Returns the `w` of its entering fact.
local function entering(field, hooked)
  local held = redis.call('HDEL', base .. ':held', field) == 1
  if redis.call('HDEL', base .. ':gone', field) == 1 then return 'r' end
  return held and (wants(hooked, 'a') and 'ar' or 'r') or hooked
end
local function tell_removed(app, channel, user, left, socket, id, received, hooked, info, exclude)
  edge('-', app, channel, user, exclude, id, received, 'null')
  if wants(hooked, 's') then hold('m/' .. app .. '/' .. channel .. '\\n' .. user, left, socket, received, info) end
end
local function tell_vacated(app, channel, left, socket, received, hooked)
  if wants(hooked, 'a') then fact('vacated', 'a', app, channel, received, socket, '', 'null') end
  if wants(hooked, 's') then hold('c/' .. app .. '/' .. channel, left, socket, received, 'null') end
end
local function tell_offline(app, user, socket, id, received)
  edge('off', app, '#watch-' .. user, user, socket, id, received, '')
end
local function vacate(app, channel, socket, id, received, hooked, quiet)
  if quiet then note('c/' .. app .. '/' .. channel, clock(), socket, id, received, hooked, 'null')
  else tell_vacated(app, channel, clock(), socket, received, hooked) end
end
local function drop_member(mine, app, channel, user, socket, id, received, hooked, quiet)
  local members = base .. ':m:' .. app .. '/' .. channel
  if redis.call('HDEL', mine, 'm/' .. app .. '/' .. channel .. '\\n' .. user) == 0 then return end
  local held = redis.call('HGET', members, user)
  if not held then return end
  local nodes, info = string.match(held, '^(%d+):(.*)$')
  if tonumber(nodes) > 1 then
    redis.call('HSET', members, user, (tonumber(nodes) - 1) .. ':' .. info)
    return
  end
  redis.call('HDEL', members, user)
  if quiet then note('m/' .. app .. '/' .. channel .. '\\n' .. user, clock(), socket, id, received, hooked, info)
  else tell_removed(app, channel, user, clock(), socket, id, received, hooked, info, socket) end
end
local function drop_user(mine, app, user, socket, id, received, quiet)
  if redis.call('HDEL', mine, 'u/' .. app .. '/' .. user) == 0 then return end
  if redis.call('HINCRBY', base .. ':u:' .. app, user, -1) > 0 then return end
  redis.call('HDEL', base .. ':u:' .. app, user)
  if quiet then note('u/' .. app .. '/' .. user, clock(), socket, id, received, '', '')
  else tell_offline(app, user, socket, id, received) end
end
"""

_ALIVE = """
local node = ARGV[1]
if redis.call('EXISTS', base .. ':lease:' .. node) == 0 then return redis.error_reply('NOLEASE no lease') end
local mine = base .. ':n:' .. node
"""


class Script(msgspec.Struct, frozen=True):
    """A script by its text, and the digest by which the server knows it once it has it."""

    text: str
    sharded: str
    digest: str
    sharded_digest: str


def _script(text: str) -> Script:
    whole = _COMMON.replace("MAX_FACTS", f"{MAX_FACTS}").replace("CLOCK", f"{CLOCK_MS}") + text
    sharded = whole.replace("local publish = 'PUBLISH'", "local publish = 'SPUBLISH'")
    return Script(whole, sharded, *(hashlib.sha1(one.encode(), usedforsecurity=False).hexdigest() for one in (whole, sharded)))


ENTER = _script("""
-- node, new epoch, epoch known before or '', milliseconds of the lease and of recovery, the number it wants or -1, `least` of
-- `missing`, SCHEMA; then the other nodes that were alive according to this node
-- Keys without a schema are those of a build that wrote none, and have schema 1.
-- The last value returned is 1 if the node's lease had expired, but the state still exists: other leases may have expired too.
local schema = redis.call('GET', base .. ':schema')
if (schema or '1') ~= ARGV[8] then return redis.error_reply('SCHEMA ' .. (schema or '1')) end
let()
if not schema then redis.call('SET', base .. ':schema', ARGV[8]) end
local node, known = ARGV[1], ARGV[3]
local epoch = redis.call('GET', base .. ':epoch')
local empty = not epoch
if empty then
  epoch = ARGV[2]
  redis.call('SET', base .. ':epoch', epoch)
end
local lost = known ~= '' and known ~= epoch
if lost then redis.call('SET', base .. ':recovering', '1', 'PX', ARGV[5]) end
local late = known == epoch and redis.call('EXISTS', base .. ':lease:' .. node) == 0
for i = 9, #ARGV do
  local is_known = empty or lost or late and redis.call('SISMEMBER', base .. ':nodes', ARGV[i]) == 1
  if is_known and redis.call('EXISTS', base .. ':lease:' .. ARGV[i]) == 0 then
    redis.call('SADD', base .. ':away', ARGV[i])
  end
end
redis.call('SREM', base .. ':away', node)
if redis.call('PTTL', base .. ':away') < 0 then redis.call('PEXPIRE', base .. ':away', ARGV[4]) end
redis.call('SADD', base .. ':nodes', node)
redis.call('SET', base .. ':lease:' .. node, known == '' and 'new' or 'back', 'PX', ARGV[4])
local number = tonumber(ARGV[6])
if number >= 0 then
  local numbers = base .. ':numbers'
  for i = 0, 1023 do
    local candidate = (number + i) % 1024
    local holder = redis.call('HGET', numbers, candidate)
    if not holder or holder == node or redis.call('SISMEMBER', base .. ':nodes', holder) == 0 then
      redis.call('HSET', numbers, candidate, node)
      number = candidate
      break
    end
  end
end
return {epoch, redis.call('PTTL', base .. ':recovering'), number, missing(node, tonumber(ARGV[7])), late and 1 or 0}
""")

BEAT = _script(
    _ALIVE
    + """
-- node; milliseconds of the lease; -1 if it may not read the facts, else the term of its ledger, or 0 if it has none; 1 if it
-- has just subscribed to its topics; `least` of `missing`, or '' if it need not be counted
-- During recovery the previous reader remains the reader, because only that node has the ledger.
-- The third value returned is the term if this node is the reader, negative if another node was the reader before; else 0.
redis.call('PEXPIRE', base .. ':lease:' .. node, ARGV[2])
if ARGV[4] == '1' then redis.call('SET', base .. ':lease:' .. node, 'there', 'PX', ARGV[2]) end
local dead, alive = {}, {}
for _, other in ipairs(redis.call('SMEMBERS', base .. ':nodes')) do
  if redis.call('EXISTS', base .. ':lease:' .. other) == 0 then
    dead[#dead + 1] = other
  elseif other ~= node then
    alive[#alive + 1] = other
    if ARGV[4] == '1' then redis.call(publish, base .. ':t:/' .. other, '\4' .. node) end
  end
end
local left = redis.call('PTTL', base .. ':recovering')
local reads, ledger = 0, tonumber(ARGV[3])
if ledger >= 0 then
  local reader = redis.call('GET', base .. ':reader')
  local term, last = string.match(redis.call('GET', base .. ':term') or '0 ', '^(%d+) (.*)$')
  local stands = last == node or ledger > tonumber(term)
  if reader == node or ledger > tonumber(term) or (not reader and (left <= 0 or (stands and ledger > 0))) then
    redis.call('SET', base .. ':reader', node, 'PX', ARGV[2])
    reads = math.max(ledger, term) + 1
    redis.call('SET', base .. ':term', reads .. ' ' .. node)
    if not stands then reads = -reads end
  end
end
local gone = left <= 0 and redis.call('EXISTS', base .. ':gone:order') or 0
local some = ARGV[5] == '' and 0 or missing(node, tonumber(ARGV[5]))
return {redis.call('GET', base .. ':epoch'), left, reads, dead, gone, some, alive}
"""
)

JOIN = _script(
    _ALIVE
    + """
-- node, app, channel, its subscriptions, most members, what is wanted (m: members, k: the event kept), which edges hooks
-- want, 1 if the node announces entries again; then for each subscription that joins: user or '', info, socket, id, received
-- Returns among the rest what became of each: 1 a member that is new, 2 one too many, 0 neither.
local app, channel, n, most, hooked = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[7]
if ARGV[8] == '1' and hooked ~= '' and recovering() then hooked = '' end
local members = base .. ':m:' .. app .. '/' .. channel
local ways, fact_ways = {}, {}
for i = 9, #ARGV, 5 do
  local user, info, way = ARGV[i], ARGV[i + 1], 0
  local entry = 'm/' .. app .. '/' .. channel .. '\\n' .. user
  if user ~= '' and redis.call('HEXISTS', mine, entry) == 0 then
    local held = redis.call('HGET', members, user)
    if held then
      local nodes, kept = string.match(held, '^(%d+):(.*)$')
      redis.call('HSET', members, user, (tonumber(nodes) + 1) .. ':' .. kept)
    elseif most > 0 and redis.call('HLEN', members) >= most then
      way, n = 2, n - 1
    else
      redis.call('HSET', members, user, '1:' .. info)
      way, fact_ways[#ways + 1] = 1, entering(entry, hooked)
    end
    if way ~= 2 then redis.call('HSET', mine, entry, '') end
  end
  ways[#ways + 1] = way
end
local total, change = count(mine, app, channel, n)
if change > 0 and total == change then
  local way = entering('c/' .. app .. '/' .. channel, hooked)
  if hooked ~= '' then fact('occupied', way, app, channel, ARGV[13], ARGV[11], '', 'null') end
end
for i, way in ipairs(ways) do
  if way == 1 then
    local user, info, socket, id, received = unpack(ARGV, 4 + 5 * i, 8 + 5 * i)
    edge('+', app, channel, user, socket, id, received, info)
    if hooked ~= '' then fact('member-added', fact_ways[i], app, channel, received, socket, user, info) end
  end
end
local found, kept, left = false, false, 0
if string.find(ARGV[6], 'm', 1, true) then found = redis.call('HGETALL', members) end
if string.find(ARGV[6], 'k', 1, true) then
  kept = redis.call('GET', base .. ':k:' .. app .. '/' .. channel)
  left = redis.call('PTTL', base .. ':k:' .. app .. '/' .. channel)
end
return {total, found, kept, left, ways}
"""
)

LEAVE = _script(
    _ALIVE
    + """
-- node, app, channel, its subscriptions, user that it has no more or '', socket, id, received, which edges hooks want
local app, channel, n, user = ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local socket, id, received, hooked = ARGV[6], ARGV[7], ARGV[8], ARGV[9]
let()
local quiet = recovering()
if user ~= '' then drop_member(mine, app, channel, user, socket, id, received, hooked, quiet) end
local total, change = count(mine, app, channel, n)
if total <= 0 and change < 0 and hooked ~= '' then vacate(app, channel, socket, id, received, hooked, quiet) end
return total
"""
)

SIGN_IN = _script(
    _ALIVE
    + """
-- node, app, user, socket, id, received
local app, user = ARGV[2], ARGV[3]
if redis.call('HSETNX', mine, 'u/' .. app .. '/' .. user, '') == 0 then return 0 end
if redis.call('HINCRBY', base .. ':u:' .. app, user, 1) == 1 then
  redis.call('HDEL', base .. ':gone', 'u/' .. app .. '/' .. user)
  edge('on', app, '#watch-' .. user, user, ARGV[4], ARGV[5], ARGV[6], '')
end
return 1
"""
)

SIGN_OUT = _script(
    _ALIVE
    + """
-- node, app, user, socket, id, received
let()
drop_user(mine, ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], recovering())
return 1
"""
)

CONNECT = _script(
    _ALIVE
    + """
-- node, app, its connections, most that all nodes together may have (0: whatever)
local field = 'q/' .. ARGV[2]
local n, most = tonumber(ARGV[3]), tonumber(ARGV[4])
local old = tonumber(redis.call('HGET', mine, field) or '0')
local total = tonumber(redis.call('HGET', base .. ':q', ARGV[2]) or '0')
if n > old and most > 0 and total + n - old > most then return 0 end
if n < old then let() end
if n > 0 then redis.call('HSET', mine, field, n) else redis.call('HDEL', mine, field) end
if redis.call('HINCRBY', base .. ':q', ARGV[2], n - old) <= 0 then redis.call('HDEL', base .. ':q', ARGV[2]) end
return 1
"""
)

KEEP = _script("""
-- app, channel, message, what is kept, milliseconds to keep it
local name = ARGV[1] .. '/' .. ARGV[2]
if tonumber(ARGV[5]) > 0 then
  redis.call('SET', base .. ':k:' .. name, ARGV[4], 'PX', ARGV[5])
else
  redis.call('DEL', base .. ':k:' .. name)
end
redis.call(publish, base .. ':t:' .. name, ARGV[3])
return redis.call('HGET', base .. ':i:' .. ARGV[1], ARGV[2])
""")

LAST = _script("""
-- the key of what is kept
return {redis.call('GET', ARGV[1]), redis.call('PTTL', ARGV[1])}
""")

BURY = _script("""
-- the dead node, received, which edges hooks want (app, newline, which, between slashes), where to go on, ids of edges
-- Returns where to go on, or false when all is done, and the apps and channels of which others have subscriptions still.
-- First all members go (m and a cursor), then all channels (c): a channel is vacated when its members were removed. It does
-- not begin anew each time: what is removed leaves holes in the hash, in which a look from the start finds nothing.
local node, received = ARGV[1], ARGV[2]
if redis.call('EXISTS', base .. ':lease:' .. node) == 1 then return {false, {}} end
let()
local mine = base .. ':n:' .. node
local quiet = recovering()
local next_id = 5
local function id()
  next_id = next_id + 1
  return ARGV[next_id - 1]
end
local function hooked(app)
  local _, at = string.find(ARGV[3], '/' .. app .. '\\n', 1, true)
  return at and string.match(ARGV[3], '^%a*', at + 1) or ''
end
local phase, at = string.sub(ARGV[4], 1, 1), string.sub(ARGV[4], 2)
local fewer = {}
local cursor, entries = unpack(redis.call('HSCAN', mine, at, 'COUNT', #ARGV - 4))
for i = 1, #entries, 2 do
  local kind, app, rest = string.match(entries[i], '^(.)/([^/]*)/?(.*)$')
  if next_id > #ARGV then return {ARGV[4], fewer} end
  if phase == 'c' and kind == 'c' then
    local total, change = count(mine, app, rest, 0)
    if total > 0 then
      fewer[#fewer + 1] = app
      fewer[#fewer + 1] = rest
    elseif change < 0 and hooked(app) ~= '' then
      vacate(app, rest, '', id(), received, hooked(app), quiet)
    end
  elseif phase == 'm' and kind == 'm' then
    local channel, user = string.match(rest, '^([^\\n]*)\\n(.*)$')
    drop_member(mine, app, channel, user, '', id(), received, hooked(app), quiet)
  elseif phase == 'm' and kind == 'u' then
    drop_user(mine, app, rest, '', id(), received, quiet)
  elseif phase == 'm' and kind == 'q' then
    local n = tonumber(entries[i + 1])
    redis.call('HDEL', mine, entries[i])
    if redis.call('HINCRBY', base .. ':q', app, -n) <= 0 then redis.call('HDEL', base .. ':q', app) end
  end
end
if cursor ~= '0' then return {phase .. cursor, fewer} end
if phase == 'm' then return {'c0', fewer} end
if redis.call('EXISTS', mine) == 1 then return {'m0', fewer} end
if redis.call('GET', base .. ':reader') == node then redis.call('DEL', base .. ':reader') end
redis.call('SREM', base .. ':nodes', node)
redis.call('SREM', base .. ':away', node)
return {false, fewer}
""")

NOTE = _script(
    _ALIVE
    + """
-- node, what it has no more (m, c or u), app, channel, user, socket, id, received, which edges hooks want, info
-- Of who left when the server could not be told, and then lost its state.
let()
local kind, app, channel, user = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local field, there
if kind == 'm' then
  field = 'm/' .. app .. '/' .. channel .. '\\n' .. user
  there = redis.call('HEXISTS', base .. ':m:' .. app .. '/' .. channel, user)
elseif kind == 'c' then
  field, there = 'c/' .. app .. '/' .. channel, redis.call('HEXISTS', base .. ':i:' .. app, channel)
else
  field, there = 'u/' .. app .. '/' .. user, redis.call('HEXISTS', base .. ':u:' .. app, user)
end
if there == 0 then note(field, clock(), ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10]) end
return 1
"""
)

SETTLE = _script("""
-- how many at most; returns whether there may be more
let()
if recovering() then return 0 end
for i = 1, tonumber(ARGV[1]) do
  local field = redis.call('LPOP', base .. ':gone:order')
  if not field then return 0 end
  local noted = redis.call('HGET', base .. ':gone', field)
  if noted then
    redis.call('HDEL', base .. ':gone', field)
    local left, socket, id, received, hooked, info = string.match(noted, '^(%Z*)%z(%Z*)%z(%Z*)%z(%Z*)%z(%Z*)%z(.*)$')
    local kind, app, channel, user = parts(field)
    if kind == 'm' then
      -- That connection may be on the channel again, as somebody else: so it is not excluded.
      tell_removed(app, channel, user, left, socket, id, received, hooked, info, '')
    elseif kind == 'c' then
      tell_vacated(app, channel, left, socket, received, hooked)
    else
      tell_offline(app, channel, socket, id, received)
    end
  end
end
return 1
""")

READ = _script("""
-- node, milliseconds of the lease, the last fact that was delivered, milliseconds for which leaving edges are held back, how
-- many of them are released at most
-- Renews the lease of the reader, and releases held edges unless nodes still announce their entries.
-- Returns 1 if this node is still the reader, else 0; and the milliseconds for which nodes still announce their entries.
if redis.call('GET', base .. ':reader') ~= ARGV[1] then return {0, 0} end
let()
redis.call('PEXPIRE', base .. ':reader', ARGV[2])
redis.call('SET', base .. ':facts:read', ARGV[3])
redis.call('XTRIM', base .. ':facts', 'MINID', ARGV[3])
local recovering = redis.call('PTTL', base .. ':recovering')
if recovering > 0 then return {1, recovering} end
local now = tonumber(clock())
local due = now - ARGV[4]
for i = 1, tonumber(ARGV[5]) do
  local left, field = string.match(redis.call('LINDEX', base .. ':held:order', 0) or '', '^(%d+) (.*)$')
  if not left or (tonumber(left) > due and tonumber(left) <= now) then break end  -- later than now: the clock was set back
  redis.call('LPOP', base .. ':held:order')
  local held = redis.call('HGET', base .. ':held', field)
  if held then
    local since, socket, received, info = string.match(held, '^(%Z*)%z(%Z*)%z(%Z*)%z(.*)$')
    if since == left then  -- otherwise the channel or member returned and left again
      redis.call('HDEL', base .. ':held', field)
      local kind, app, channel, user = parts(field)
      fact(kind == 'm' and 'member-removed' or 'vacated', 's', app, channel, received, socket, user, info)
    end
  end
end
return {1, 0}
""")

HOLD = _script(
    _ALIVE
    + """
-- node, m or c, app, channel, user, socket, received, info
-- Holds back the leaving edge that an earlier process had held back for a channel or member when it stopped.
let()
local kind, app, channel, user = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local field, there
if kind == 'm' then
  field = 'm/' .. app .. '/' .. channel .. '\\n' .. user
  there = redis.call('HEXISTS', base .. ':m:' .. app .. '/' .. channel, user)
else
  field, there = 'c/' .. app .. '/' .. channel, redis.call('HEXISTS', base .. ':i:' .. app, channel)
end
if there == 1 or redis.call('HEXISTS', base .. ':held', field) == 1 then return 0 end
hold(field, clock(), ARGV[6], ARGV[7], ARGV[8])
fact(kind == 'm' and 'member-added' or 'occupied', 'h', app, channel, ARGV[7], ARGV[6], user, ARGV[8])
return 1
"""
)

LAST_OUT = _script("""
-- node, milliseconds of the lease
-- If no other node is alive, makes this node the reader, ends the recovery, and returns 1; else returns 0.
for _, other in ipairs(redis.call('SMEMBERS', base .. ':nodes')) do
  if redis.call('EXISTS', base .. ':lease:' .. other) == 1 then return 0 end
end
let()
redis.call('SET', base .. ':reader', ARGV[1], 'PX', ARGV[2])
redis.call('DEL', base .. ':recovering')
return 1
""")

TAKE = _script("""
-- node, how many at most
-- Removes held edges for the last node, which keeps them itself. Returns 1 if there are more, else 0; and for each edge its
-- field and its value.
if redis.call('GET', base .. ':reader') ~= ARGV[1] then return {0, {}} end
let()
local taken = {}
for _, one in ipairs(redis.call('LPOP', base .. ':held:order', ARGV[2]) or {}) do
  local left, field = string.match(one, '^(%d+) (.*)$')
  local held = redis.call('HGET', base .. ':held', field)
  if held and string.match(held, '^%Z*') == left then
    redis.call('HDEL', base .. ':held', field)
    taken[#taken + 1] = field
    taken[#taken + 1] = held
  end
end
return {redis.call('EXISTS', base .. ':held:order'), taken}
""")

SEEN = _script("""
-- the epoch known, a hash, a field or '' for all of them
-- What is compared with what clients were told must not be what is left by a server that has lost its state.
if redis.call('GET', base .. ':epoch') ~= ARGV[1] then return redis.error_reply('NOLEASE the state is lost') end
if ARGV[3] == '' then return redis.call('HGETALL', ARGV[2]) end
return redis.call('HGET', ARGV[2], ARGV[3])
""")

SCRIPTS = (ENTER, BEAT, JOIN, LEAVE, SIGN_IN, SIGN_OUT, CONNECT, KEEP, LAST, BURY, NOTE, SETTLE, READ, HOLD, LAST_OUT, TAKE, SEEN)
