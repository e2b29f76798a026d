-- Looks through a piece of one of a topic's keys for what mentions an id, so
-- that a backlog is not sent over the wire. Changes nothing.
-- KEYS 1: what is looked through   2: state, or for 'body' the set of due times
-- ARGV 1: how: waiting or pending (a stream), entries (a stream of dead
--   letters), list, body, due (the same by time), scored (a sorted set), ranked
--   (the same by score)   2: where to go on, '' for the start   3: how many at
--   most   4: group
--   5: the id, '' for all   6: the longest part of it that needs no escape
-- Returns { where to go on or '' at the end, how many were looked at, hits }.
-- A hit of waiting and entries: { id, fields }; of pending: { id, fields,
-- consumer, idle ms, deliveries }; of list: { item }; of body and due: { token,
-- fields, due in Unix ms, hash of the body }; of scored
-- and of ranked: { member, score }.
local key, state, from, limit, group = KEYS[1], KEYS[2], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local id, plain = ARGV[5], ARGV[6]
local hits = {}

local function mentions(text)
  if string.find(text, id, 1, true) then return true end
  return string.find(text, '\\', 1, true) and string.find(text, plain, 1, true)
end

local function any_mentions(entry_id, fields)
  if mentions(entry_id) then return true end
  for _, text in ipairs(fields) do
    if mentions(text) then return true end
  end
  return false
end

local function is_not_pending(entry_id)
  local rows = redis.pcall('XPENDING', key, group, entry_id, entry_id, 1)
  return rows.err or #rows == 0
end

-- The id of the last of a whole piece.
local function go_on(rows)
  return #rows == limit and (rows[#rows][1]) or ''
end

local look = {}

function look.waiting()
  local behind = waits_behind(key, state, group)
  if not behind then return '', 0 end
  if from == '' or is_behind(behind, from) then from = behind end
  local entries = redis.call('XRANGE', key, '(' .. from, '+', 'COUNT', limit)
  for _, entry in ipairs(entries) do
    if any_mentions(entry[1], entry[2]) and is_not_pending(entry[1]) then
      hits[#hits + 1] = { entry[1], unpacked(entry[2]) }
    end
  end
  return go_on(entries), #entries
end

function look.pending()
  if redis.call('TYPE', key).ok ~= 'stream' then return '', 0 end
  local rows = redis.pcall('XPENDING', key, group, from == '' and '-' or '(' .. from, '+', limit)
  if rows.err then
    -- Without a group nothing is in flight.
    if string.find(rows.err, 'NOGROUP', 1, true) then return '', 0 end
    error(rows)
  end
  for _, row in ipairs(rows) do
    local entry = redis.call('XRANGE', key, row[1], row[1])[1]
    if entry and any_mentions(entry[1], entry[2]) then
      hits[#hits + 1] = { row[1], unpacked(entry[2]), row[2], row[3], row[4] }
    end
  end
  return go_on(rows), #rows
end

function look.entries()
  local entries = redis.call('XRANGE', key, from == '' and '-' or '(' .. from, '+', 'COUNT', limit)
  for _, entry in ipairs(entries) do
    if any_mentions(entry[1], entry[2]) then hits[#hits + 1] = { entry[1], unpacked(entry[2]) } end
  end
  return go_on(entries), #entries
end

-- The place of what was looked at last, behind a colon its text: where things
-- were taken from the left meanwhile, it stands further left. One that stood
-- there twice only sends us back, and one that is gone to the start.
function look.list()
  if redis.call('TYPE', key).ok ~= 'list' then return '', 0 end
  local at, text = string.match(from, '^(%d+):(.*)$')
  local first = 0
  if at then
    at = tonumber(at)
    if redis.call('LINDEX', key, at) ~= text then at = redis.call('LPOS', key, text) or -1 end
    first = at + 1
  end
  local items = redis.call('LRANGE', key, first, first + limit - 1)
  for _, item in ipairs(items) do
    if mentions(item) then hits[#hits + 1] = { item } end
  end
  if #items < limit then return '', #items end
  return whole(first + #items - 1) .. ':' .. items[#items], #items
end

local function delayed(token, packed, due)
  due = due or redis.call('ZSCORE', state, token)
  if packed and due and mentions(packed) then
    hits[#hits + 1] = { token, unpacked(cmsgpack.unpack(packed)), due, redis.sha1hex(packed) }
  end
end

function look.body()
  local page = redis.call('HSCAN', key, from == '' and '0' or from, 'COUNT', limit)
  for i = 1, #page[2], 2 do delayed(page[2][i], page[2][i + 1]) end
  return page[1] == '0' and '' or page[1], #page[2] / 2
end

function look.due()
  local first = tonumber(from == '' and 0 or from)
  local rows = redis.call('ZRANGE', state, first, first + limit - 1, 'WITHSCORES')
  for i = 1, #rows, 2 do delayed(rows[i], redis.call('HGET', key, rows[i]), rows[i + 1]) end
  return #rows == limit * 2 and whole(first + limit) or '', #rows / 2
end

function look.scored()
  local page = redis.call('ZSCAN', key, from == '' and '0' or from, 'COUNT', limit)
  for i = 1, #page[2], 2 do
    if mentions(page[2][i]) then hits[#hits + 1] = { page[2][i], page[2][i + 1] } end
  end
  return page[1] == '0' and '' or page[1], #page[2] / 2
end

function look.ranked()
  local first = tonumber(from == '' and 0 or from)
  local rows = redis.call('ZRANGE', key, first, first + limit - 1, 'WITHSCORES')
  for i = 1, #rows, 2 do hits[#hits + 1] = { rows[i], rows[i + 1] } end
  return #rows == limit * 2 and whole(first + limit) or '', #rows / 2
end

local next_from, looked_at = look[ARGV[1]]()
return { next_from, looked_at, hits }
