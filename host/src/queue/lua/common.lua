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
