-- Adds subscriptions of a node to a channel, and the members of these subscriptions.
--
-- KEYS[1]   base of the shard's keys
-- ARGV[1]   node
-- ARGV[2]   app
-- ARGV[3]   channel
-- ARGV[4]   number of the node's subscriptions to the channel, the new subscriptions included
-- ARGV[5]   maximum number of members of the channel; 0 stands for no limit
-- ARGV[6]   letters of the data to return: m (members), k (cached event), both, or none
-- ARGV[7]   letters of the edges that hooks receive (`scripts.py`)
-- ARGV[8]   1 if the node registers its entries again
-- ARGV[9]   '' if the channel keeps no history; else, separated by spaces: generation, new word for a channel without a counter,
--           milliseconds for which the counter is kept at least, number of newest messages to return, maximum bytes to return,
--           and the positions that subscribers have
-- ARGV[10…] for each new subscription: user or '', user info, socket id, id of the edge, time of the edge
--
-- Returns the number of subscriptions on all nodes, the members, the cached event with the milliseconds for which it is still
-- cached, and a result for each new subscription: 1 for a new member, 2 for a member that exceeds the limit, else 0. Then, if the
-- channel keeps a history: its word, its last offset, the offset of the oldest kept message, and entries (`newest_entries`). The
-- entries begin with the lowest position after which all messages are kept.
local node, app, channel, n, most = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local want, hooked, registers_again = ARGV[6], ARGV[7], ARGV[8] == '1'
if not has_lease(node) then return redis.error_reply('NOLEASE no lease') end
local mine = base .. ':n:' .. node
if registers_again and hooked ~= '' and recovering() then hooked = '' end
local members = base .. ':m:' .. app .. '/' .. channel
local results, ways = {}, {}
for i = 10, #ARGV, 5 do
  local user, info, result = ARGV[i], ARGV[i + 1], 0
  local entry = 'm/' .. app .. '/' .. channel .. '\n' .. user
  if user ~= '' and redis.call('HEXISTS', mine, entry) == 0 then
    local held = redis.call('HGET', members, user)
    if held then
      local nodes, kept = string.match(held, '^(%d+):(.*)$')
      redis.call('HSET', members, user, (tonumber(nodes) + 1) .. ':' .. kept)
    elseif most > 0 and redis.call('HLEN', members) >= most then
      result, n = 2, n - 1
    else
      redis.call('HSET', members, user, '1:' .. info)
      result, ways[#results + 1] = 1, entering(entry, hooked)
    end
    if result ~= 2 then redis.call('HSET', mine, entry, '') end
  end
  results[#results + 1] = result
end
local total, change = count(mine, app, channel, n)
if change > 0 and total == change then
  local way = entering('c/' .. app .. '/' .. channel, hooked)
  if hooked ~= '' then hook_event('occupied', way, app, channel, ARGV[14], ARGV[12], '', 'null') end
end
for i, result in ipairs(results) do
  if result == 1 then
    local user, info, socket, id, received = unpack(ARGV, 5 + 5 * i, 9 + 5 * i)
    edge('+', app, channel, user, socket, id, received, info)
    if hooked ~= '' then hook_event('member-added', ways[i], app, channel, received, socket, user, info) end
  end
end
local found, cached, left = false, false, 0
if string.find(want, 'm', 1, true) then found = redis.call('HGETALL', members) end
if string.find(want, 'k', 1, true) then
  cached = redis.call('GET', base .. ':k:' .. app .. '/' .. channel)
  left = redis.call('PTTL', base .. ':k:' .. app .. '/' .. channel)
end
local history = false
if ARGV[9] ~= '' then
  local generation, new_word, ms, rewind, bytes, positions = string.match(ARGV[9], '^(%w+) (%w+) (%d+) (%d+) (%d+)(.*)$')
  local word, last, first = history_of(app, channel, new_word, ms)
  local after = math.max(first - 1, last - rewind)
  for offset in string.gmatch(positions, ' ' .. generation .. word .. ':(%d+)') do
    local since = tonumber(offset)
    if since + 1 >= first and since < after then after = since end
  end
  local entries = {}
  if after < last then entries = newest_entries(app, channel, after, tonumber(bytes)) end
  history = {word, last, first, entries}
end
return {total, found, cached, left, results, history}
