-- Confirms sessions that are due, or that `claim_session.lua`, `end_session.lua` or `save_session.lua` has given to a node.
--
-- KEYS[1]  base of the shard's keys
-- ARGV[1]  milliseconds after which a session that is not deleted yet is due again
-- ARGV[2…] for each session: app, client id, generation, and one of these words: `ended`, the session has ended, and is deleted;
--          `will`, the will is published, and the absent session remains; `both`, the will of a session that has ended is
--          published, and `ended` follows
allow_when_full()
for i = 2, #ARGV, 4 do
  local app, client, its_generation = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local name, fields = app .. '/' .. client, nil
  local function read() fields = redis.call('HMGET', base .. ':s:' .. name, 'n', 'g', 'u') end
  read()
  local is_moved = fields[2] ~= its_generation
  if is_moved then -- the client has a later session (`claim_session.lua`)
    client, name = ended_name(client, its_generation), ended_name(name, its_generation)
    read()
  end
  local key = base .. ':s:' .. name
  if fields[1] == '' and fields[2] == its_generation then
    if ARGV[i + 3] == 'ended' then
      forget_session(app, client)
      if is_moved then redis.call('DEL', key) end
    else
      set_will(name, '', 0)
      redis.call('HDEL', key, 'q')
      if ARGV[i + 3] == 'will' then
        redis.call('HDEL', key, 'y')
        redis.call('ZADD', base .. ':sd', fields[3], name)
      else
        redis.call('ZADD', base .. ':sd', wall() + ARGV[1], name)
      end
    end
  end
end
return 1
