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
