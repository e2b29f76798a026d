-- Shared by the scripts that move messages between keys; it precedes their text.

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- A large number without an exponent.
local function integer(number)
  return string.format('%.0f', number)
end

-- The result of a pcall for one message of a batch, as text. READONLY means that
-- the server is no master any more, which concerns the whole batch: it is raised,
-- so that the caller looks for the new master. Nothing was written then.
local function result_text(is_ok, result)
  local text = type(result) == 'table' and result.err or tostring(result)
  if not is_ok and string.find(text, '^%-?READONLY') then error({ err = text }) end
  return text
end

-- More values than this overflow the Lua stack in unpack, so they are packed.
local UNPACKED_MAX = 7000

local function add(stream, fields)
  if #fields > UNPACKED_MAX then
    fields = { 'gw-packed', cmsgpack.pack(fields) }
  end
  return redis.call('XADD', stream, '*', unpack(fields))
end

local function unpacked(fields)
  if #fields == 2 and fields[1] == 'gw-packed' then return cmsgpack.unpack(fields[2]) end
  return fields
end

-- The keys KEYS[first..first+6] of a topic.
local function topic_at(first)
  return {
    stream = KEYS[first], state = KEYS[first + 1], work = KEYS[first + 2],
    delayed = KEYS[first + 3], body = KEYS[first + 4],
    high = KEYS[first + 5], low = KEYS[first + 6],
  }
end

-- Raises an error that names the key if it has another type.
local function check_type(key, kind)
  local found = redis.call('TYPE', key).ok
  if found ~= kind and found ~= 'none' then
    error({ err = 'WRONGTYPE ' .. key .. ' holds a ' .. found .. ', not a ' .. kind })
  end
end

-- The stream that a message goes to. A priority has a stream of its own, and a
-- flag in the state tells workers that it exists. Other messages go to the
-- topic's main key; if that is a list of plain clients, or was one when it last
-- existed, they go to the work stream. Before anything is written, an error
-- names a key of another type.
local function target(topic, class)
  if class == 'high' or class == 'low' then
    check_type(topic[class], 'stream')
    check_type(topic.state, 'hash')
    redis.call('HSETNX', topic.state, class, '1')
    return topic[class]
  end
  local kind = redis.call('TYPE', topic.stream).ok
  if kind == 'none' then
    check_type(topic.state, 'hash')
    kind = redis.call('HGET', topic.state, 'kind') or 'stream'
  end
  if kind == 'stream' then return topic.stream end
  if kind ~= 'list' then check_type(topic.stream, 'stream') end
  check_type(topic.work, 'stream')
  return topic.work
end

-- Has to be called before the first write of a script that adds a delayed message.
local function check_delayed(topic)
  check_type(topic.state, 'hash')
  check_type(topic.delayed, 'zset')
  check_type(topic.body, 'hash')
end

-- A token names the stream that its message goes to: `<kind>:<number>` or
-- `<kind>:<class>:<number>`.
local function token(kind, class, number)
  if class == '' then return kind .. ':' .. number end
  return kind .. ':' .. class .. ':' .. number
end

local function class_of(token)
  return string.match(token, '^%a:(%a+):') or ''
end

-- Never overwrites the body of another message, even if the counter was lost
-- together with its key.
local function add_delayed(topic, due, class, fields)
  local name
  repeat
    name = token('p', class, redis.call('HINCRBY', topic.state, 'delayed-seq', 1))
  until redis.call('HSETNX', topic.body, name, cmsgpack.pack(fields)) == 1
  redis.call('ZADD', topic.delayed, integer(due), name)
end
-- Settles messages that move: done with follow-ups, to run again, dead letters.
-- KEYS 1: stream   2: state   3: delayed   4: delayed:body   5: dead   6: outbox
--   7..: seven for each topic of a follow-up in this slot: stream, state, work,
--   delayed, delayed:body, high, low; then the markers of deduplication keys
-- ARGV 1: group   2: our consumer   3: 1 to delete entries, 0 where another group
--   reads the stream too   4: the stream's class in tokens   5: how long markers
--   last, in ms
--   then for each message, where `fields` is a count and as many strings:
--   'done'  id, number of its marker's key or 0, number of follow-ups,
--           { number of the topic's first key, or 0 and the topic's name to use
--           the outbox, delay ms, priority, fields }
--   'run-again'    id, delivery count, delay ms, fields to set
--   'dead-letter'  id, delivery count, fields to set
-- Returns for each: 'ok', 'gone' (settled before, or no longer ours), or an error.
-- May be sent twice. Each message is checked, added, then deleted, so a refused
-- write leaves it in flight. An error concerns one message only, unless it
-- concerns the server.
local stream, state, delayed, body, dead, outbox = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local group, consumer, deletes, class, window = ARGV[1], ARGV[2], ARGV[3] == '1', ARGV[4], ARGV[5]
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

local function remove(id)
  redis.call('XACK', stream, group, id)
  if deletes then redis.call('XDEL', stream, id) end
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

-- The fields of an entry, some of them replaced, if this delivery is ours. After
-- a lost lease the message belongs to another worker.
local function entry_with(id, delivery_count, set)
  local row = pending(id)
  if not row or row[2] ~= consumer or row[4] ~= delivery_count then return nil end
  local entry = redis.call('XRANGE', stream, id, id)[1]
  if not entry then return nil end
  local replaced, fields = {}, {}
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
  local id, marker, follow_ups = next_arg(), tonumber(next_arg()), {}
  for _ = 1, tonumber(next_arg()) do
    local first = tonumber(next_arg())
    local name = first == 0 and next_arg()
    follow_ups[#follow_ups + 1] = {
      topic = first > 0 and topic_at(first), name = name,
      delay = tonumber(next_arg()), class = next_arg(), fields = next_fields(),
    }
  end
  return function()
    local exists = pending(id) or (deletes and redis.call('XRANGE', stream, id, id)[1])
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
    if marker > 0 then redis.pcall('SET', KEYS[marker], '1', 'PX', window) end
    redis.pcall('HINCRBY', state, 'done', 1)
    return 'ok'
  end
end

settle['run-again'] = function()
  local id, delivery_count, delay, set = next_arg(), tonumber(next_arg()), tonumber(next_arg()), next_fields()
  return function()
    local fields = entry_with(id, delivery_count, set)
    if not fields then return 'gone' end
    local name = token('s', class, id)
    check_type(delayed, 'zset')
    redis.call('HSET', body, name, cmsgpack.pack(fields))
    redis.call('ZADD', delayed, integer(now_ms() + delay), name)
    remove(id)
    redis.pcall('HINCRBY', state, 'retried', 1)
    return 'ok'
  end
end

settle['dead-letter'] = function()
  local id, delivery_count, set = next_arg(), tonumber(next_arg()), next_fields()
  return function()
    local fields = entry_with(id, delivery_count, set)
    if not fields then return 'gone' end
    check_type(dead, 'stream')
    add(dead, fields)
    remove(id)
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
-- As it was with queue-1.jsonl.
