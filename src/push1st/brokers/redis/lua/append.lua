-- Publishes a batch of messages to a channel, keeps the batch as the newest part of the channel's history, and caches the last
-- event of a cache channel. With an idempotency key, a repeated publish changes nothing, and gets the first result.
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
-- ARGV[14]  id of the message with the idempotency key
--
-- Returns the number of subscriptions to the channel on all nodes, the channel's word, and its last offset. If the idempotency
-- key was used before, returns the stored result: number of subscriptions, epoch, offset and message id, separated by spaces.
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
if ARGV[11] ~= '' then
  if tonumber(ARGV[11]) > 0 then
    redis.call('SET', base .. ':k:' .. name, ARGV[10], 'PX', ARGV[11])
  else
    redis.call('DEL', base .. ':k:' .. name)
  end
end
redis.call(PUBLISH, base .. ':t:' .. name, data)
return {subscriptions, word, last}
