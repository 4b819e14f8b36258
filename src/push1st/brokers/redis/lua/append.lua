-- Publishes a batch of messages to a channel, keeps the batch as the newest part of the channel's history, and caches the last
-- event of a cache channel. With an idempotency key, a repeated publish changes nothing, and gets the first result. For MQTT, the
-- script also retains the only message of the channel, sends the batch to nodes with matching filters, gives the messages to groups,
-- and appends the messages to logs.
--
-- KEYS[1]   base of the shard's keys
-- ARGV[1]   app
-- ARGV[2]   channel
-- ARGV[3]   batch of messages, without their positions
-- ARGV[4]   number of messages in the batch
-- ARGV[5]   maximum number of messages of the history; 0: the channel keeps no history
-- ARGV[6]   milliseconds for which the history is kept
-- ARGV[7]   milliseconds for which the channel's counter is kept
-- ARGV[8]   generation of the server's state
-- ARGV[9]   new word, used if the channel has no counter
-- ARGV[10]  message to cache, or ''
-- ARGV[11]  milliseconds for which the message is cached; 0 removes the cached message; '' if no message is cached
-- ARGV[12]  name of the idempotency key, or ''
-- ARGV[13]  milliseconds for which the idempotency key is kept
-- ARGV[14]  id of the last message
-- ARGV[15]  message to retain, or ''
-- ARGV[16]  milliseconds for which the message is retained; 0: without end; -1 removes the retained message; '' without RETAIN
-- ARGV[17]  size of the retained message
-- ARGV[18]  '' if the publisher is not anonymous; else the letter a, and the address if it counts
-- ARGV[19]  number of the arguments for inboxes, N; this and the following arguments may be missing
-- ARGV[20]  batch of messages for inboxes, if N is not 0
-- ARGV[21…] N - 1 nodes with a matching filter, whose inboxes get this batch; then the number of the arguments for groups, the
--           arguments of `give_to_groups`, and the arguments of `append_to_logs`
--
-- Returns the number of subscriptions to the channel on all nodes, the channel's word, its last offset, the number of groups and
-- logs with the messages, and the number of messages that were dropped to keep the bounds of groups and logs. If the idempotency
-- key was used before, returns the stored result: number of subscriptions, epoch, offset and message id, separated by spaces. If a
-- retained message would exceed a bound, returns the error LIMIT with the bound, and publishes nothing.
--
-- The parts that begin with `rarely` are only in the script APPEND_ALL, because the definitions of their functions take time.
--
-- The first write needs memory, so a server whose memory is full rejects the whole script. An entry of the stream is a batch. Its
-- id is the offset of its last message and the number of its messages. The stream may have newer entries than the counter if
-- somebody changed these keys by hand; then the history begins again.
local app, channel, messages, n, size, key = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[12]
if key ~= '' then
  key = base .. ':o:' .. key
  local first_result = redis.call('GET', key)
  if first_result then return first_result end
end
local found, dropped = 0, 0
--[[ rarely ]]
local groups = 20 + (ARGV[19] or 0)
local group_arguments = tonumber(ARGV[groups] or 0)
local logs = groups + 1 + group_arguments
local left, holder = ARGV[16] or '', ARGV[18]
if left ~= '' and left ~= '-1' then
  local exceeded
  exceeded, holder = room_for_retained(app, channel, tonumber(ARGV[17]), ARGV[18])
  if exceeded then
    redis.pcall('SET', base .. ':no:' .. ARGV[14], '', 'PX', 10000)
    return redis.error_reply('LIMIT ' .. exceeded)
  end
end
--[[ end ]]
local name = app .. '/' .. channel
local word, last, data = '', 0, messages
if size > 0 then
  local stream, counter = base .. ':h:' .. name, base .. ':hm:' .. name
  local known = redis.call('HMGET', counter, 'e', 'o')
  word = known[1]
  if word and tonumber(known[2] or '') then
    last = redis.call('HINCRBY', counter, 'o', n)
  else
    word, last = ARGV[9], tonumber(n)
    redis.call('HSET', counter, 'e', word, 'o', last)
    redis.call('DEL', stream)
  end
  local added = redis.pcall('XADD', stream, 'MINID', math.max(0, last - size + 1), last .. '-' .. n, 'm', messages)
  if added.err then
    word, last = ARGV[9], tonumber(n)
    redis.call('HSET', counter, 'e', word, 'o', last)
    redis.call('DEL', stream)
    redis.call('XADD', stream, last .. '-' .. n, 'm', messages)
  end
  redis.call('PEXPIRE', stream, ARGV[6])
  redis.call('PEXPIRE', counter, ARGV[7])
  data = '\5' .. ARGV[8] .. word .. '\0' .. last - n + 1 .. '\0' .. messages
end
local subscriptions = redis.call('HGET', base .. ':i:' .. app, channel) or '0'
if key ~= '' then
  local epoch = size > 0 and ARGV[8] .. word or ''
  redis.call('SET', key, table.concat({subscriptions, epoch, last, ARGV[14]}, ' '), 'PX', ARGV[13])
end
--[[ rarely ]]
if ARGV[11] ~= '' then cache(app, channel, ARGV[10], ARGV[11], ARGV[14]) end
if left == '-1' then
  drop_retained(app, channel)
elseif left ~= '' then
  retain(app, channel, ARGV[15], left, ARGV[14], ARGV[17], holder)
end
found, dropped = append_to_logs(app, channel, ARGV[8], messages, logs)
--[[ end ]]
redis.call(PUBLISH, base .. ':t:' .. name, data)
--[[ rarely ]]
for i = 21, groups - 1 do redis.call(PUBLISH, base .. ':t:/' .. ARGV[i], ARGV[20]) end
local given, lost = give_to_groups(app, groups + 1, group_arguments)
found, dropped = found + given, dropped + lost
--[[ end ]]
return {subscriptions, word, last, found, dropped}
