-- Stands before every script that moves messages between keys.

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- More fields than this overflow the stack of unpack, so they travel packed.
local UNPACKED_MAX = 7000

local function add(stream, fields)
  if #fields > UNPACKED_MAX then
    fields = { 'gw-packed', cmsgpack.pack(fields) }
  end
  return redis.call('XADD', stream, '*', unpack(fields))
end

-- Where a new message goes: into the topic's key, unless that is, or was when
-- it last existed, a list of plain clients; then into the list's work stream.
-- An error names a key of another type, before anything is written.
local function target(topic)
  local kind = redis.call('TYPE', topic.stream).ok
  if kind == 'none' then
    kind = redis.call('HGET', topic.state, 'kind') or 'stream'
  end
  if kind == 'stream' then return topic.stream end
  if kind == 'list' then return topic.work end
  error({ err = 'WRONGTYPE ' .. topic.stream .. ' holds a ' .. kind .. ', not a stream' })
end

-- A token is never used twice while its body stands, even if the counter was
-- lost with its key: the body of another message must not be overwritten.
local function add_later(topic, delay, fields)
  local token
  repeat
    token = 'p:' .. redis.call('HINCRBY', topic.state, 'later-seq', 1)
  until redis.call('HSETNX', topic.body, token, cmsgpack.pack(fields)) == 1
  redis.call('ZADD', topic.later, string.format('%.0f', now_ms() + delay), token)
end

-- KEYS[first..first+4] of a topic.
local function topic_at(first)
  return {
    stream = KEYS[first], state = KEYS[first + 1], work = KEYS[first + 2],
    later = KEYS[first + 3], body = KEYS[first + 4],
  }
end
