-- Settles messages that move: done with follow-ups, to run again, dead letters.
-- KEYS 1: stream   2: state   3: delayed   4: delayed:body   5: dead   6: outbox
--   7: dedup:claims   8: deleted   9..: seven for each topic of a follow-up in this
--   slot: stream, state, work, delayed, delayed:body, high, low
-- ARGV 1: group   2: our consumer   3: 1 to delete entries, 0 where another group
--   reads the stream too   4: the stream's class in tokens   5: the window of
--   deduplication in ms, 0 to write no markers
--   then for each message, where `fields` is a count and as many strings, and `claim`
--   the hash of its deduplication key or '', its first entry, and for how many ms the
--   claim lasts:
--   'done'  id, claim, number of follow-ups,
--           { number of the topic's first key, or 0 and the topic's name to use
--           the outbox, delay ms, priority, fields }
--   'run-again'    id, claim, delivery count, delay ms, fields to set
--   'dead-letter'  id, claim, delivery count, fields to set
--   'entry-deleted'  id, claim, delivery count, all fields of the dead letter
-- Returns for each: 'ok', 'gone' (settled before, or no longer ours), 'deleted' (it
-- is ours, but its entry was deleted: only 'entry-deleted' can move it), or an error.
-- May be sent twice. Each message is checked, added, then deleted, so a refused
-- write leaves it in flight. An error concerns one message only, unless it
-- concerns the server.
local stream, state, delayed, body, dead, outbox = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local claims, deleted = KEYS[7], KEYS[8]
local group, consumer, deletes, class, window = ARGV[1], ARGV[2], ARGV[3] == '1', ARGV[4], tonumber(ARGV[5])
local at = 5

local function next_arg()
  at = at + 1
  return ARGV[at]
end

local function next_fields()
  local list = {}
  for _ = 1, tonumber(next_arg()) do list[#list + 1] = next_arg() end
  return list
end

local function next_claim()
  local claim = { hash = next_arg(), first = next_arg(), lasts = tonumber(next_arg()) }
  return claim.hash ~= '' and claim
end

local function remove(id)
  redis.call('XACK', stream, group, id)
  if deletes then redis.call('XDEL', stream, id) else add_to_history(state, class, { id }) end
end

-- Whether the entry was deleted while it was pending for us, and a renewal has
-- removed its row.
local function is_noted_deleted(id)
  return redis.call('HGET', deleted, class .. ':' .. id) == consumer
end

local function pending(id)
  local row = redis.pcall('XPENDING', stream, group, id, id, 1)
  if row.err then
    -- The group was destroyed: the next one delivers the message again.
    if string.find(row.err, 'NOGROUP', 1, true) then return nil end
    error(row)
  end
  return row[1]
end

-- The fields of an entry, some of them replaced, if this delivery is ours; else
-- nil and the result. After a lost lease the message belongs to another worker. What
-- was known of a message that had not run yet ends with its run.
local function entry_with(id, delivery_count, set)
  local row = pending(id)
  if not row then return nil, is_noted_deleted(id) and 'deleted' or 'gone' end
  if row[2] ~= consumer or row[4] ~= delivery_count then return nil, 'gone' end
  local entry = redis.call('XRANGE', stream, id, id)[1]
  if not entry then return nil, 'deleted' end
  local replaced, fields = { ['gw-parked'] = true, ['gw-crashes'] = true }, {}
  for i = 1, #set, 2 do replaced[set[i]] = true end
  for i = 1, #entry[2], 2 do
    if not replaced[entry[2][i]] then
      fields[#fields + 1] = entry[2][i]
      fields[#fields + 1] = entry[2][i + 1]
    end
  end
  for i = 1, #set do fields[#fields + 1] = set[i] end
  return fields
end

local settle = {}

-- Counts even after a lost lease, as long as the entry exists: it ran to its end.
function settle.done()
  local id, claim, follow_ups = next_arg(), next_claim(), {}
  for _ = 1, tonumber(next_arg()) do
    local first = tonumber(next_arg())
    local name = first == 0 and next_arg()
    follow_ups[#follow_ups + 1] = {
      topic = first > 0 and topic_at(first), name = name,
      delay = tonumber(next_arg()), class = next_arg(), fields = next_fields(),
    }
  end
  return function()
    local exists = pending(id) or is_noted_deleted(id) or (deletes and redis.call('XRANGE', stream, id, id)[1])
    if not exists then return 'gone' end
    -- All keys are checked before the first write, so an error publishes none.
    for _, one in ipairs(follow_ups) do
      if one.name then check_type(outbox, 'stream') else one.target = target(one.topic, one.class) end
      if one.topic and one.delay > 0 then check_delayed(one.topic) end
    end
    for _, one in ipairs(follow_ups) do
      local due = one.delay > 0 and now_ms() + one.delay or 0
      if one.name then
        redis.call('XADD', outbox, '*', 'topic', one.name, 'due', integer(due), 'priority', one.class, unpack(one.fields))
      elseif due > 0 then
        add_delayed(one.topic, due, one.class, one.fields)
      else
        add(one.target, one.fields)
      end
    end
    remove(id)
    redis.call('HDEL', deleted, class .. ':' .. id)
    if claim then pcall(free_claim, claims, claim.hash, claim.first) end
    if claim and window > 0 then pcall(mark_finished, state, claims, { claim.hash }, window) end
    redis.pcall('HINCRBY', state, 'done', 1)
    return 'ok'
  end
end

settle['run-again'] = function()
  local id, claim, delivery_count, delay = next_arg(), next_claim(), tonumber(next_arg()), tonumber(next_arg())
  local set = next_fields()
  return function()
    local fields, result = entry_with(id, delivery_count, set)
    if not fields then return result end
    local name = token('s', class, id)
    check_type(delayed, 'zset')
    redis.call('HSET', body, name, cmsgpack.pack(fields))
    local due = now_ms() + delay
    redis.call('ZADD', delayed, integer(due), name)
    remove(id)
    if claim then pcall(hold_claim, claims, claim.hash, claim.first, due + claim.lasts) end
    redis.pcall('HINCRBY', state, 'retried', 1)
    return 'ok'
  end
end

settle['dead-letter'] = function()
  local id, claim, delivery_count, set = next_arg(), next_claim(), tonumber(next_arg()), next_fields()
  return function()
    local fields, result = entry_with(id, delivery_count, set)
    if not fields then return result end
    check_type(dead, 'stream')
    add(dead, fields)
    remove(id)
    if claim then pcall(free_claim, claims, claim.hash, claim.first) end
    redis.pcall('HINCRBY', state, 'dead', 1)
    return 'ok'
  end
end

-- The entry is gone, so the letter is made from the copy of the worker that ran it.
settle['entry-deleted'] = function()
  local id, claim, delivery_count, fields = next_arg(), next_claim(), tonumber(next_arg()), next_fields()
  return function()
    local _, result = entry_with(id, delivery_count, {})
    if result ~= 'deleted' then return 'gone' end
    check_type(dead, 'stream')
    add(dead, fields)
    remove(id)
    redis.call('HDEL', deleted, class .. ':' .. id)
    if claim then pcall(free_claim, claims, claim.hash, claim.first) end
    redis.pcall('HINCRBY', state, 'dead', 1)
    return 'ok'
  end
end

local results = {}
while at < #ARGV do
  -- All arguments are read first, so an error does not disturb the next message.
  local run = settle[next_arg()]()
  results[#results + 1] = result_text(pcall(run))
end
return results
