-- Settles messages that move: done with follow-ups, run again later, dead.
-- KEYS 1: stream   2: state   3: later   4: later:body   5: dead
--   6..: five for each topic of a follow-up: stream, state, work, later, body
-- ARGV 1: group   2: me   3: 1 to delete, 0 where another group reads too
--   then for each message, where `fields` is a count and as many strings:
--   'done'  id, number of follow-ups, { topic number from 0, delay ms, fields }
--   'later' id, deliveries, delay ms, fields to set
--   'dead'  id, deliveries, fields to set
-- Returns for each: 'ok', 'gone' (settled before, or no longer mine), or an
-- error. May be sent twice. Each message checks, then inserts, then deletes,
-- so that a refused insert leaves it where it was; one's error is no other's.
local stream, state, later, body, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local group, me, deletes = ARGV[1], ARGV[2], ARGV[3] == '1'
local at = 3

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
  local id, follow_ups = word(), {}
  for _ = 1, tonumber(word()) do
    local topic, delay = topic_at(6 + 5 * tonumber(word())), tonumber(word())
    follow_ups[#follow_ups + 1] = { topic = topic, delay = delay, fields = words() }
  end
  return function()
    local stands = pending(id) or (deletes and redis.call('XRANGE', stream, id, id)[1])
    if not stands then return 'gone' end
    for _, one in ipairs(follow_ups) do one.target = target(one.topic) end
    for _, one in ipairs(follow_ups) do
      if one.delay > 0 then
        add_later(one.topic, one.delay, one.fields)
      else
        add(one.target, one.fields)
      end
    end
    remove(id)
    redis.pcall('HINCRBY', state, 'done', 1)
    return 'ok'
  end
end

function settle.later()
  local id, deliveries, delay, set = word(), tonumber(word()), tonumber(word()), words()
  return function()
    local fields = entry_with(id, deliveries, set)
    if not fields then return 'gone' end
    local token = 's:' .. id
    redis.call('HSET', body, token, cmsgpack.pack(fields))
    redis.call('ZADD', later, string.format('%.0f', now_ms() + delay), token)
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
  local fine, result = pcall(run)
  if not fine and type(result) == 'table' then result = result.err end
  results[#results + 1] = tostring(result)
end
return results
