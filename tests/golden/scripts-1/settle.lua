-- Stands before every script that moves messages between keys.

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function whole(number)
  return string.format('%.0f', number)
end

-- What a pcall for one message of many has to say of it. That the server is no
-- master any more is no message's matter: the whole reply says so, and who
-- asked looks for the new one. Nothing can have been written there.
local function told(fine, result)
  local text = type(result) == 'table' and result.err or tostring(result)
  if not fine and string.find(text, '^%-?READONLY') then error({ err = text }) end
  return text
end

-- More fields than this overflow the stack of unpack, so they travel packed.
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

-- KEYS[first..first+6] of a topic.
local function topic_at(first)
  return {
    stream = KEYS[first], state = KEYS[first + 1], work = KEYS[first + 2],
    later = KEYS[first + 3], body = KEYS[first + 4],
    high = KEYS[first + 5], low = KEYS[first + 6],
  }
end

-- An error that names a key which holds something else than is to be written.
local function must_hold(key, kind)
  local found = redis.call('TYPE', key).ok
  if found ~= kind and found ~= 'none' then
    error({ err = 'WRONGTYPE ' .. key .. ' holds a ' .. found .. ', not a ' .. kind })
  end
end

-- Where a message goes. One with a priority has its stream, and the state says
-- so, for workers that read only what they know of. Others go into the topic's
-- key, unless that is, or was when it last existed, a list of plain clients;
-- then into the list's work stream. An error names a key of another type,
-- before anything is written.
local function target(topic, class)
  if class == 'high' or class == 'low' then
    must_hold(topic[class], 'stream')
    must_hold(topic.state, 'hash')
    redis.call('HSETNX', topic.state, class, '1')
    return topic[class]
  end
  local kind = redis.call('TYPE', topic.stream).ok
  if kind == 'none' then
    must_hold(topic.state, 'hash')
    kind = redis.call('HGET', topic.state, 'kind') or 'stream'
  end
  if kind == 'stream' then return topic.stream end
  if kind ~= 'list' then must_hold(topic.stream, 'stream') end
  must_hold(topic.work, 'stream')
  return topic.work
end

-- To be called before anything is written that comes with a delayed message.
local function must_take_later(topic)
  must_hold(topic.state, 'hash')
  must_hold(topic.later, 'zset')
  must_hold(topic.body, 'hash')
end

-- A token says where it leads: `<kind>:<number>` or `<kind>:<class>:<number>`.
local function token(kind, class, number)
  if class == '' then return kind .. ':' .. number end
  return kind .. ':' .. class .. ':' .. number
end

local function class_of(token)
  return string.match(token, '^%a:(%a+):') or ''
end

-- A token is never used twice while its body stands, even if the counter was
-- lost with its key: the body of another message must not be overwritten.
local function add_later(topic, due, class, fields)
  local name
  repeat
    name = token('p', class, redis.call('HINCRBY', topic.state, 'later-seq', 1))
  until redis.call('HSETNX', topic.body, name, cmsgpack.pack(fields)) == 1
  redis.call('ZADD', topic.later, whole(due), name)
end

-- Settles messages that move: done with follow-ups, run again later, dead.
-- KEYS 1: stream   2: state   3: later   4: later:body   5: dead   6: out
--   7..: seven for each topic of a follow-up in this slot: stream, state, work,
--   later, later:body, high, low; then the markers of what has finished
-- ARGV 1: group   2: me   3: 1 to delete, 0 where another group reads too
--   4: the stream's class in tokens   5: how long markers last, in ms
--   then for each message, where `fields` is a count and as many strings:
--   'done'  id, number of its marker's key or 0, number of follow-ups,
--           { number of the topic's first key, or 0 and its name to go through
--           the outbox, delay ms, priority, fields }
--   'later' id, deliveries, delay ms, fields to set
--   'dead'  id, deliveries, fields to set
-- Returns for each: 'ok', 'gone' (settled before, or no longer mine), or an
-- error. May be sent twice. Each message checks, then inserts, then deletes,
-- so that a refused insert leaves it where it was; one's error is no other's,
-- unless it is the server's.
local stream, state, later, body, dead, out = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local group, me, deletes, class, window = ARGV[1], ARGV[2], ARGV[3] == '1', ARGV[4], ARGV[5]
local at = 5

local function word()
  at = at + 1
  return ARGV[at]
end

local function words()
  local list = {}
  for _ = 1, tonumber(word()) do list[#list + 1] = word() end
  return list
end

local function remove(id)
  redis.call('XACK', stream, group, id)
  if deletes then redis.call('XDEL', stream, id) end
end

local function pending(id)
  local row = redis.pcall('XPENDING', stream, group, id, id, 1)
  if row.err then
    -- The group was destroyed: a new one delivers the message again.
    if string.find(row.err, 'NOGROUP', 1, true) then return nil end
    error(row)
  end
  return row[1]
end

-- The entry with some of its fields set anew, if this delivery of it is mine.
-- Whoever lost the lease has no say: the message is another's by now.
local function entry_with(id, deliveries, set)
  local row = pending(id)
  if not row or row[2] ~= me or row[4] ~= deliveries then return nil end
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

-- A late one counts if the message still stands: it did run to its end.
function settle.done()
  local id, marker, follow_ups = word(), tonumber(word()), {}
  for _ = 1, tonumber(word()) do
    local first = tonumber(word())
    local name = first == 0 and word()
    follow_ups[#follow_ups + 1] = {
      topic = first > 0 and topic_at(first), name = name,
      delay = tonumber(word()), class = word(), fields = words(),
    }
  end
  return function()
    local stands = pending(id) or (deletes and redis.call('XRANGE', stream, id, id)[1])
    if not stands then return 'gone' end
    -- All keys of all of them come first: an error leaves none of them sent.
    for _, one in ipairs(follow_ups) do
      if one.name then must_hold(out, 'stream') else one.target = target(one.topic, one.class) end
      if one.topic and one.delay > 0 then must_take_later(one.topic) end
    end
    for _, one in ipairs(follow_ups) do
      local due = one.delay > 0 and now_ms() + one.delay or 0
      if one.name then
        redis.call('XADD', out, '*', 'topic', one.name, 'due', whole(due), 'priority', one.class, unpack(one.fields))
      elseif due > 0 then
        add_later(one.topic, due, one.class, one.fields)
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

function settle.later()
  local id, deliveries, delay, set = word(), tonumber(word()), tonumber(word()), words()
  return function()
    local fields = entry_with(id, deliveries, set)
    if not fields then return 'gone' end
    local name = token('s', class, id)
    must_hold(later, 'zset')
    redis.call('HSET', body, name, cmsgpack.pack(fields))
    redis.call('ZADD', later, whole(now_ms() + delay), name)
    remove(id)
    redis.pcall('HINCRBY', state, 'retried', 1)
    return 'ok'
  end
end

function settle.dead()
  local id, deliveries, set = word(), tonumber(word()), words()
  return function()
    local fields = entry_with(id, deliveries, set)
    if not fields then return 'gone' end
    must_hold(dead, 'stream')
    add(dead, fields)
    remove(id)
    redis.pcall('HINCRBY', state, 'dead', 1)
    return 'ok'
  end
end

local results = {}
while at < #ARGV do
  -- Read whole before it is run: an error must not lose the place.
  local run = settle[word()]()
  results[#results + 1] = told(pcall(run))
end
return results
-- As it was with queue-1.jsonl.
