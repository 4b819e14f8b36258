-- Publishes messages to a cache channel, and caches one message of them.
--
-- KEYS[1]  base of the shard's keys
-- ARGV[1]  app
-- ARGV[2]  channel
-- ARGV[3]  batch of messages to publish
-- ARGV[4]  message to cache
-- ARGV[5]  milliseconds for which the message is cached; 0 removes the cached message
-- ARGV[6]  id of the message to cache
--
-- Returns the number of subscriptions to the channel on all nodes, or false if there are none.
local app, channel, messages = ARGV[1], ARGV[2], ARGV[3]
cache(app, channel, ARGV[4], ARGV[5], ARGV[6])
redis.call(PUBLISH, base .. ':t:' .. app .. '/' .. channel, messages)
return redis.call('HGET', base .. ':i:' .. app, channel)
